"""sample.py --best-of N --rerank CLIP: the best one is kept, and is the picture of its own seed."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.cli.png import read_settings
from imagen.cli.record import Picture
from imagen.cli.rerank import candidates, choose
from imagen.cli.sample import main
from imagen.scores.encoders import DualEncoder
from tests.evaluation.coloured import Colours, plain
from tests.factories import save_clip, save_siglip, tiny_pipeline


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rerankers")
    return {"clip": save_clip(root / "clip"), "siglip": save_siglip(root / "siglip")}


def test_candidates_count_up_over_all_pictures() -> None:
    groups = candidates([Picture("a", 0), Picture("a", 1), Picture("b", 2)], 2, 10)
    assert [[(one.prompt, one.seed) for one in group] for group in groups] == [
        [("a", 10), ("a", 11)], [("a", 12), ("a", 13)], [("b", 14), ("b", 15)]
    ]  # fmt: skip


def test_the_one_of_the_prompts_colour_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    colors, batches = ["blue", "red", "green", "red", "green", "green"], []

    def make(batch: Any, stage_end: Callable[..., None]) -> Any:
        batches.append([one.seed for one in batch])
        stage_end(pipe, 16, [])
        assert pipe._interrupt
        pipe._interrupt = False
        made = [plain(colors[one.seed]) for one in batch]
        return SimpleNamespace(stages=SimpleNamespace(slots={"base": made}))

    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True, desc="own")
    groups = candidates([Picture("a red thing", 0), Picture("a green thing", 0)], 3, 0)
    encoder: Any = Colours()
    found = choose(pipe, encoder, groups, make, 4)
    assert batches == [[0, 1, 2, 3], [4, 5]]
    assert [(one.prompt, one.seed) for one in found] == [("a red thing", 1), ("a green thing", 4)]
    told = found[0].chosen
    assert (told["best_of"], told["rerank"], told["clip_score"]) == (3, "colours", 100.0)
    assert told["clip_scores"] == [-54.99, 100.0, -31.568], "cosines, below 0 too"
    assert found[1].chosen["clip_scores"][1:] == [100.0, 100.0], "of equals the first"
    assert pipe._progress_bar_config == {"disable": True, "desc": "own"}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_best_is_the_picture_of_its_seed_bit_for_bit(
    kind: str, folders: dict[str, Path], run: Any, tmp_path: Path
) -> None:
    assert run("a red circle", "--best-of", "4", "--rerank", str(folders[kind]), "--seed", "3") == 0
    (path,) = run.out.iterdir()
    told = read_settings(path)
    assert (told["best_of"], told["rerank"]) == (4, kind)
    pipe, encoder = tiny_pipeline(), DualEncoder.load(folders[kind])
    made = [pipe("a red circle", generator=torch.Generator().manual_seed(s), size=16).images[0] for s in range(3, 7)]
    scores = 100 * (encoder.images(made) * encoder.texts(["a red circle"] * 4)).sum(dim=1)
    assert told["clip_scores"] == pytest.approx(scores.tolist(), abs=2e-3)
    assert told["clip_score"] == max(told["clip_scores"])
    assert told["seed"] == 3 + int(scores.argmax())
    assert path.name == f"a-red-circle_seed{told['seed']}.png"
    words = shlex.split(told["command"])[2:]
    assert not {"--best-of", "--rerank"} & {*words}
    assert main([*words, "--out", str(tmp_path / "again")]) == 0
    (again,) = (tmp_path / "again").iterdir()
    assert np.array_equal(pixels(again), pixels(path))
    assert pixels(path).shape == (64, 64, 3), "of the last stage"
    assert "best_of" not in read_settings(again)


def test_several_prompts_and_pictures_each_have_their_own_candidates(folders: dict[str, Path], run: Any) -> None:
    words = ["a red circle", "two blue star", "--num-images", "2", "--best-of", "2", "--size", "16", "--grid"]
    assert run(*words, "--rerank", str(folders["clip"]), "--batch-size", "3", "--save-stages") == 0
    told = [read_settings(path) for path in run.out.iterdir() if not path.name.startswith("grid")]
    assert sorted(one["seed"] // 2 for one in told) == [0, 1, 2, 3]
    assert all(one["prompt"] == ("a red circle" if one["seed"] < 4 else "two blue star") for one in told)
    grid = read_settings(run.out / "grid_seed0.png")
    assert grid["seeds"] == sorted(one["seed"] for one in told)


def test_without_it_records_are_as_they_were(run: Any) -> None:
    assert run("a red circle", "two blue star", "--size", "16", "--grid") == 0
    for path in run.out.iterdir():
        assert not {"best_of", "rerank", "clip_scores", "clip_score", "seeds"} & {*read_settings(path)}


@pytest.mark.parametrize(("words", "told"), [
    (["--best-of", "2"], "--best-of 2 needs --rerank"), (["--rerank", "CLIP"], "chooses among several: say how many"),
    (["--best-of", "0", "--rerank", "CLIP"], "--best-of is 0; expected an integer of at least 1"),
    (["--best-of", "2", "--rerank", "LOST"], "is no encoder of pictures and texts"),
])  # fmt: skip
def test_one_without_the_other_is_one_line(
    words: list[str],
    told: str,
    folders: dict[str, Path],
    run: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imagen.cli.sample.load", lambda *_: pytest.fail("the model was loaded"))
    words = [str({"CLIP": folders["clip"], "LOST": folders["clip"] / "lost"}.get(word, word)) for word in words]
    assert run("a red circle", *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sample.py: error: ")
    assert told in error
    assert not run.out.exists()
