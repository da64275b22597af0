"""Zero-shot classification: rankings that are known, classes from a file, and the command on real encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.evaluation import zeroshot
from imagen.evaluation.__main__ import main
from imagen.evaluation.pictures import open_classes
from imagen.evaluation.stats import Share
from imagen.evaluation.zeroshot import class_vectors, classify, read_classes
from imagen.scores.encoders import DualEncoder
from tests.evaluation.coloured import Blind, Colours, plain
from tests.factories import save_clip, save_siglip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four red pictures, a blue one among them, and two green ones."""
    for name, colors in (("red", ["red", "red", "blue", "red"]), ("green", ["green", "green"])):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for number, color in enumerate(colors):
            plain(color, number).save(tmp_path / "tree" / name / f"{number}.png")
    return tmp_path / "tree"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The command by an encoder of colours: its exit code and, of 0, what it wrote, else its last line."""
    monkeypatch.setattr(zeroshot, "load_clip", lambda args: Colours())

    def call(*words: object) -> tuple[int, Any]:
        code = main(["zeroshot", "--clip", "colours", "--out", str(tmp_path / "out"), *map(str, words)])
        if code:
            return code, capsys.readouterr().err.strip().splitlines()[-1]
        return code, json.loads((tmp_path / "out" / "zeroshot.json").read_text())

    return call


def test_ranks_and_confusion_of_known_cosines() -> None:
    cosines = torch.tensor([[9.0, 1, 2, 3, 4, 5], [0, 8, 9, 1, 2, 3], [5, 4, 3, 2, 1, 0], [1, 2, 9, 3, 4, 5]])
    found = classify(cosines, [0, 1, 5, 2], torch.eye(6), list("abcdef"))
    assert found.order[1].tolist() == [2, 1, 5, 4, 3, 0]
    assert [found.top(count) for count in (1, 2, 5, 6)] == [Share(2, 4), Share(3, 4), Share(3, 4), Share(4, 4)]
    expected = np.zeros((6, 6), dtype=int)
    expected[0, 0] = expected[1, 2] = expected[5, 0] = expected[2, 2] = 1
    assert np.array_equal(found.confusion, expected)
    told = found.to_json()
    assert (told["top1"], told["top5"]) == (Share(2, 4), Share(3, 4))
    assert [told["classes"][name] for name in "abf"] == [Share(1, 1), Share(0, 1), Share(0, 1)]
    assert told["classes"]["d"] == Share(0, 0)
    assert told["confusion"] == expected.tolist()


def test_an_encoder_that_tells_nothing_is_at_chance() -> None:
    pictures = [plain(color) for color in ("red", "green", "blue")]
    classes = class_vectors(Blind(), ["red", "green", "blue"], ["{}"])  # type: ignore[arg-type]
    assert classify(Blind().images(pictures), [0, 1, 2], classes, "rgb").top(1) == Share(1, 3)


def test_an_ensemble_is_the_mean_of_unit_vectors(tmp_path: Path) -> None:
    encoder = DualEncoder.load(save_clip(tmp_path / "clip"))
    templates = ["{}", "a {}", "two {} of {}"]
    found = class_vectors(encoder, ["red circle", "{} star"], templates)
    for row, name in zip(found, ["red circle", "{} star"], strict=True):
        texts = [name, f"a {name}", f"two {name} of {name}"]
        mean = torch.stack([encoder.texts([text])[0] for text in texts]).double().mean(dim=0)
        torch.testing.assert_close(row.double(), mean / mean.norm(), atol=1e-6, rtol=0)


def test_classes_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes("\ufeffn01\tred fox\r\n\r\n  n02 \t grey wolf \nsorrel horse\nn04\t\n".encode())
    assert read_classes(file) == {
        "n01": "red fox", "n02": "grey wolf", "sorrel horse": "sorrel horse", "n04": "n04"
    }  # fmt: skip


@pytest.mark.parametrize(("content", "told"), [
    (None, "cannot be read: No such file"), (b"\xff\xfe\x00", "it is not UTF-8 text"), (b"", "has 0 classes"),
    (b"one\tsaid\n\n", "has 1 classes; expected two at least"), (b"a\nb\na\tother\n", "has 'a' twice"),
])  # fmt: skip
def test_files_of_classes_that_are_refused(content: bytes | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"--classes .*classes.txt.*{told}"):
        read_classes(tmp_path / "classes.txt")


def test_classes_are_folders_or_captions_and_what_has_none_is_passed_over(tree: Path, tmp_path: Path) -> None:
    found = open_classes(str(tree))
    shown = [(one.key, one.caption) for one in found]
    assert shown == [(f"green/{n}.png", "green") for n in range(2)] + [(f"red/{n}.png", "red") for n in range(4)]
    assert len(list(open_classes(str(tree), num=3))) == 3
    (tmp_path / "my.yaml").write_text(f"data: {{kind: folder, path: {tree}, captions: class, template: 'a {{}}'}}\n")
    assert {one.caption for one in open_classes(str(tmp_path / "my.yaml"))} == {"a red", "a green"}
    with pytest.raises(ValueError, match="have whole captions and no classes"):
        open_classes("shapes:heldout:3")
    rows = [{"file_name": "red/0.png", "text": "fox"}, {"file_name": "red/1.png"}]
    (tree / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = open_classes(str(tree / "rows.jsonl"))
    assert [one.caption for one in found] == ["fox"]
    assert [note.reason for note in found.skipped] == ["has no class"]
    (tree / "rows.jsonl").write_text(json.dumps(rows[1]))
    with pytest.raises(ValueError, match="none of the pictures .* can be used: .* has no class"):
        list(open_classes(str(tree / "rows.jsonl")))


def test_the_command_by_an_encoder_of_colours(run: Callable[..., Any], tree: Path, tmp_path: Path) -> None:
    code, result = run("--data", tree)
    assert (code, result["clip"]) == (0, "colours")
    found = result["result"]
    assert list(found["classes"]) == ["green", "red"]
    assert (found["top1"]["successes"], found["top1"]["trials"]) == (5, 6)
    (tmp_path / "classes.txt").write_text("red\na\tblue\ngreen\n")
    code, result = run("--data", tree, "--classes", tmp_path / "classes.txt", "--template", "{}", "some {} thing")
    assert result["result"]["confusion"] == [[3, 1, 0], [0, 0, 0], [0, 0, 2]]
    assert result["result"]["classes"]["a"] == {"share": None, "interval": [0.0, 1.0], "successes": 0, "trials": 0}
    assert result["result"]["top5"]["share"] == 1.0
    assert Image.open(tmp_path / "out" / "confusion.png").width > 300
    assert run("--data", tree, "--num", 3)[1]["result"]["top1"]["trials"] == 3


@pytest.mark.parametrize(("words", "told"), [
    (["--template", "a photo"], "--template 'a photo' needs {}"), (["--seed", "1"], "--seed 1 is for the shapes world"),
    (["--classes", "CLASSES"], "has pictures of 'red', which --classes lacks"), (["--data", "lost"], "are not there"),
    (["--num", "2"], r"has pictures of \['green'\] alone"),
])  # fmt: skip
def test_what_cannot_be_asked_is_one_line(
    words: list[str], told: str, run: Callable[..., Any], tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("green\nblue\n")
    words = [word.replace("CLASSES", str(tmp_path / "classes.txt")) for word in words]
    code, line = run("--data", tree, *words)
    assert code == 2
    with pytest.raises(ValueError, match=told):
        raise ValueError(line)
    assert not (tmp_path / "out" / "zeroshot.json").exists()


def test_the_shapes_world_has_its_own_classes(run: Callable[..., Any]) -> None:
    for words in (["--classes", "x"], ["--template", "{}"]):
        code, line = run(*words)
        assert code == 2
        assert "the shapes world has its own" in line


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_the_command_end_to_end(save: Callable[[Path], Path], tree: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "drawn")
    words = ["zeroshot", "--clip", str(folder), "--data", str(tree), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*words, "--batch-size", "4"]) == 0
    result = json.loads((tmp_path / "out" / "zeroshot.json").read_text())
    encoder = DualEncoder.load(folder)
    classes = encoder.texts(["a picture of green", "a picture of red"])
    pictures = [Image.open(path) for path in (*sorted(tree.glob("green/*")), *sorted(tree.glob("red/*")))]
    nearest = (encoder.images(pictures) @ classes.T).argmax(dim=1).tolist()
    counts = [[nearest[:2].count(n) for n in (0, 1)], [nearest[2:].count(n) for n in (0, 1)]]
    assert result["result"]["confusion"] == counts
    assert result["clip"] == "drawn"
    assert main([*words, "--batch-size", "0"]) == 2
