"""Retrieval: the place of the first right one, captions that are the same, and the command on real encoders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.evaluation import retrieval
from imagen.evaluation.__main__ import main
from imagen.evaluation.retrieval import first_right
from imagen.scores.encoders import DualEncoder
from tests.evaluation.coloured import Colours, plain, write_pictures
from tests.factories import save_clip, save_siglip


def test_the_place_of_the_first_right_one() -> None:
    order = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 0, 1, 3]])
    assert first_right(order, np.arange(4)).tolist() == [0, 2, 3, 3]
    assert first_right(order, np.array([0, 1, 0, 1])).tolist() == [0, 0, 1, 2], "another picture of its caption will do"
    assert first_right(np.array([[0]]), np.array([0])).tolist() == [0]


def test_the_command_by_an_encoder_of_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrieval, "load_clip", lambda args: Colours())
    said = [("red", "a red one"), ("red", "a red one"), ("blue", "a green one"), ("green", "a blue one")]
    folder = write_pictures(tmp_path / "pictures", said)
    words = ["retrieval", "--clip", "colours", "--data", str(folder), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    result = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert (result["pictures"], result["clip"]) == (4, "colours")
    for found in result["result"].values():
        assert [(found[f"R@{rank}"]["successes"], found[f"R@{rank}"]["trials"]) for rank in (1, 5, 10)] == [
            (2, 4), (4, 4), (4, 4)
        ]  # fmt: skip
    assert "4 pictures, 3 different captions" in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "out" / "retrieval.png").convert("RGB")).astype(int)
    frames = [sheet[2 + row * (sheet.shape[0] // 4) + 8, 4] for row in range(4)]  # of the first found for each text
    assert [bool(one[1] > one[0]) for one in frames] == [True, True, False, False]
    assert main([*words, "--num", "2"]) == 0
    assert json.loads((tmp_path / "out" / "retrieval.json").read_text())["pictures"] == 2
    plain("red").save(folder / "bare.png")
    assert main(words) == 2
    assert "has no caption for 'bare.png'; retrieval is by captions" in capsys.readouterr().err.splitlines()[-1]


class Central(Colours):
    """Three pictures that are apart, and three texts that are all nearest to the first, each next to its own."""

    def images(self, pictures: Sequence[Image.Image], batch_size: int = 64) -> torch.Tensor:
        return torch.eye(3)

    def texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        return torch.tensor([[1.0, 0, 0], [0.9, 0.3, 0.1], [0.9, 0.1, 0.3]])


def test_texts_find_pictures_in_rows_and_pictures_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "load_clip", lambda args: Central())
    folder = write_pictures(tmp_path / "pictures", [("red", "one"), ("red", "two"), ("red", "three")])
    assert main(["retrieval", "--clip", "x", "--data", str(folder), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "retrieval.json").read_text())["result"]
    assert {name: one["R@1"]["successes"] for name, one in found.items()} == {
        "text to picture": 1,
        "picture to text": 3,
    }


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_the_command_end_to_end(save: Callable[[Path], Path], tmp_path: Path) -> None:
    said = [(color, f"a {color} circle") for color in ("red", "green", "blue", "white")]
    folder, clip = write_pictures(tmp_path / "pictures", said), save(tmp_path / "drawn")
    words = ["retrieval", "--clip", str(clip), "--data", str(folder), "--out", str(tmp_path), "--batch-size", "3"]
    assert main([*words, "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "retrieval.json").read_text())["result"]
    encoder = DualEncoder.load(clip)
    pictures = encoder.images([Image.open(path) for path in sorted(folder.glob("*.png"))])
    cosines = encoder.texts([caption for _, caption in said]) @ pictures.T
    for name, matrix in (("text to picture", cosines), ("picture to text", cosines.T)):
        better = (matrix > matrix.diagonal()[:, None]).sum(dim=1)  # that stand before the own one
        assert found[name]["R@1"]["successes"] == int((better == 0).sum())
        assert found[name]["R@5"]["share"] == 1.0


def test_pictures_that_are_drawn(tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "drawn")
    words = ["retrieval", "--clip", str(clip), "--data", "shapes:train:6", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*words, "--size", "32"]) == 0
    assert json.loads((tmp_path / "retrieval.json").read_text())["pictures"] == 6
    assert main(words) == 2
