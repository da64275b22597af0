"""The command that compares two commits: it passes equal ones, and sees a change in the last bit."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.compare_commits.__main__ import ROOT, checkout, main
from tests.compare_commits.differences import compare
from tests.mutants.run import copy_tree

# a rounding in guidance, and a billionth of a loss's weight
GUIDANCE = ("return scale * cond + (1 - scale) * uncond", "return uncond + scale * (cond - uncond)")
LOSS = (
    "return log_snr.clamp(low, math.log(self.gamma)) - log_snr",
    "return log_snr.clamp(low, math.log(self.gamma)) - log_snr + 1e-9",
)


def write(folder: Path, pixel: int = 7, x: float = 0.5, weight: float = 0.25, **entries: object) -> Path:
    """Results of every kind in `folder`."""
    folder.mkdir(parents=True)
    np.save(folder / "64.npy", np.float32([0.1, x, math.nan]))
    Image.new("RGB", (2, 2), (pixel, 0, 0)).save(folder / "a.png")
    save_file({"w": np.float64([1.0, weight])}, folder / "model.safetensors")
    lines = [{"step": 1, "loss": 100.0, "clock": {"unix": len(str(folder))}}, {"step": 2, "loss": None}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"base": {"threshold": "dynamic", "steps": [3, 4], "none": [], **entries}}
    (folder / "stages.json").write_text(json.dumps(settings))
    return folder


def test_equal_results_and_what_may_differ(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "check")
    row = compare(one, write(tmp_path / "b" / "check", weight=0.25 + 1e-13, new_setting=3))
    assert row.first is None
    assert 0 < row.largest < 2e-13
    assert row.numbers == 3 + 12 + 2 + 1 + 4 + 4


@pytest.mark.parametrize(
    ("changes", "where", "largest"),
    [
        ({"pixel": 8}, "a.png pixels", 1.0),
        ({"x": 0.5 + 2**-24}, "64.npy array", 2**-24),
        ({"x": math.nan}, "64.npy array", math.inf),
        ({"weight": 0.25 + 1e-11}, "model.safetensors w", 1e-11),
        ({"threshold": "static"}, "stages.json base.threshold: 'dynamic' -> 'static'", math.inf),
        ({"steps": [3, 5]}, "stages.json base.steps.1: 4 -> 5", 0.25),
        ({"steps": [3]}, "stages.json base.steps.1: 4 -> nothing", math.inf),
    ],
)
def test_a_difference_is_named(tmp_path: Path, changes: dict[str, object], where: str, largest: float) -> None:
    row = compare(write(tmp_path / "a"), write(tmp_path / "b", **changes))  # type: ignore[arg-type]
    assert row.first is not None
    assert row.first.startswith(where)
    assert row.largest == pytest.approx(largest, rel=1e-3)


def test_losses_agree_to_their_size_and_lines_must_be_as_many(tmp_path: Path) -> None:
    one = write(tmp_path / "a")
    for number, (loss, good) in enumerate([(100 + 1e-11, True), (100 + 1e-9, False)]):
        two = write(tmp_path / f"b{number}")
        text = (two / "metrics.jsonl").read_text()
        (two / "metrics.jsonl").write_text(text.replace("100.0", repr(loss)))
        assert (compare(one, two).first is None) == good
    two = write(tmp_path / "c")
    with (two / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3}\n')
    assert compare(one, two).first == "metrics.jsonl lines: 2 -> 3"


def test_weights_may_not_be_more_nor_files_missing(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a"), write(tmp_path / "b")
    save_file({"w": np.float64([1.0, 0.25]), "extra": np.zeros(1)}, two / "model.safetensors")
    assert compare(one, two).first == "model.safetensors extra: nothing -> float64[1]"
    (two / "model.safetensors").unlink()
    assert compare(one, two).first == "model.safetensors: not on both sides"
    (two / "error.txt").write_text("ValueError: no\nmore")
    assert compare(one, two).first == "after fails: ValueError: no"
    assert compare(tmp_path / "nowhere", two).first == "before did not get there"


def test_no_such_commit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing-of-this-name", "."]) == 2
    error = capsys.readouterr().err
    assert error == (
        "compare_commits: error: 'nothing-of-this-name' is no commit and no folder with train.py: give a commit, a "
        "branch or .\n"
    )


def test_a_commit_is_taken_as_it_was_and_a_folder_as_it_is(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "train.py").write_text("old")
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "the first"]):
        subprocess.run(["git", *who, *words], cwd=tree, check=True)
    (tree / "train.py").write_text("new")
    (tree / "more.py").write_text("more")
    assert checkout("HEAD", tmp_path / "commit", tree).endswith(" the first")
    assert checkout(".", tmp_path / "folder", tree) == "the folder ."
    assert (tmp_path / "commit" / "train.py").read_text() == "old"
    assert (tmp_path / "folder" / "train.py").read_text() == "new"
    assert (tmp_path / "folder" / "more.py").exists()
    assert subprocess.run(["git", "worktree", "list"], cwd=tree, capture_output=True).stdout.count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_equal_trees_pass(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([".", ".", "--quick"]) == 0
    printed = capfd.readouterr().out
    assert "checks are the same" in printed
    assert printed.count("training: super-resolution, crop") == 3, "both sides and the table"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_planted_difference_is_seen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "changed"
    copy_tree(ROOT, changed)
    subprocess.run(["git", "init", "-q", str(changed)], check=True)
    for file, (text, other) in {"guidance.py": GUIDANCE, "losses.py": LOSS}.items():
        path = changed / "imagen" / "diffusion" / file
        assert path.read_text().count(text) == 1
        path.write_text(path.read_text().replace(text, other))
    assert main([".", str(changed), "--quick", "--only", "pictures", "--only", "training"]) == 1
    table = capfd.readouterr().out.partition("largest difference")[2].partition("\n\n")[0].splitlines()[1:]
    different = {line[:52].strip() for line in table if line.endswith("DIFFERENT")}
    assert "pictures: 64 to 256 px" in different
    assert "pictures: guidance off" not in different
    assert {"training: base, text, muon", "resuming: super-resolution, crop"} <= different
    assert "training: base, learned variance" not in different, "its loss has no clamp"
