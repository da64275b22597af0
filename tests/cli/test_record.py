"""The record of a cascade in which two stages make pictures of one side, 8 -> 16 -> 16: each goes by its slot."""

from __future__ import annotations

import io
import shlex
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen.cli.png import read_settings
from imagen.cli.record import Writer, stage_names
from imagen.cli.sample import main
from imagen.stages.spec import StageDefaults
from tests.factories import tiny_base, tiny_pipeline, tiny_sr

STAGES = {
    "base": {"size": 8, "num_inference_steps": 2},
    "sr256": {"size": 16, "lowres_size": 8, "num_inference_steps": 2, "aug_level": 0.2},
    "sr1024": {"size": 16, "lowres_size": 16, "num_inference_steps": 2, "aug_level": 0.1},
}
RECORDED = {
    "size": 16,
    "steps": {"8": 1, "sr256": 3, "sr1024": 2},
    "guidance": {"8": 5.0, "sr256": 5.0, "sr1024": 2.0},
    "aug_level": {"sr256": 0.3, "sr1024": 0.4},
    "lowres_consistency": {"sr256": 2, "sr1024": 0},
    "sampler": {"8": "ddim", "sr256": "ddim", "sr1024": "ddim"},
}


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("keeping")
    parts = {"base_unet": tiny_base(), "sr256_unet": tiny_sr(2), "sr1024_unet": tiny_sr(3)}
    tiny_pipeline(**parts, stages=STAGES).save_pretrained(folder)
    return str(folder)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=int)


def test_a_stage_is_called_by_its_side_where_that_is_its_alone() -> None:
    running = {slot: StageDefaults.from_dict(stage) for slot, stage in STAGES.items()}
    assert stage_names(running) == {"base": "8", "sr256": "sr256", "sr1024": "sr1024"}
    assert stage_names({slot: running[slot] for slot in ("base", "sr256")}) == {"base": "8", "sr256": "16"}


def test_both_stages_are_recorded_and_written_and_the_command_makes_the_picture_again(
    keeping: str, tmp_path: Path
) -> None:
    asked = ["--steps", "1,3,2", "--guidance", "16=2", "--aug-level", "sr256=0.3,sr1024=0.4", "--sampler", "ddim"]
    asked += ["--lowres-consistency", "sr256=2", "--seed", "7", "--save-stages"]
    assert main(["a red circle", "--model", keeping, "--out", str(tmp_path / "first"), *asked]) == 0
    stem = "a-red-circle_seed7"
    files = {path.name for path in (tmp_path / "first").iterdir()}
    assert files == {f"{stem}.png", f"{stem}_8px.png", f"{stem}_sr256.png"}
    first = tmp_path / "first" / f"{stem}.png"
    assert np.abs(pixels(first) - pixels(first.with_stem(f"{stem}_sr256"))).max() > 1
    for name in files:
        settings = read_settings(tmp_path / "first" / name)
        assert {key: settings[key] for key in RECORDED} == RECORDED
    words = shlex.split(read_settings(first)["command"])
    assert main([*words[2:], "--out", str(tmp_path / "second"), "--save-stages"]) == 0
    for name in files:
        assert np.array_equal(pixels(tmp_path / "first" / name), pixels(tmp_path / "second" / name)), name


def test_stopping_before_them_records_one_stage(keeping: str, tmp_path: Path) -> None:
    assert main(["a red circle", "--model", keeping, "--out", str(tmp_path), "--size", "8", "--save-stages"]) == 0
    (path,) = tmp_path.iterdir()
    assert Image.open(path).size == (8, 8)
    settings = read_settings(path)
    assert (settings["size"], settings["steps"], settings["aug_level"]) == (8, {"8": 2}, {})


def test_a_picture_of_their_side_goes_through_the_last_stage_alone(keeping: str, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "start.png")
    start = ["--image", str(tmp_path / "start.png"), "--steps", "3", "--out", str(tmp_path / "out")]
    assert main(["a red circle", "--model", keeping, *start]) == 0
    (path,) = (tmp_path / "out").iterdir()
    settings = read_settings(path)
    assert settings["steps"] == {"16": 3}
    words = shlex.split(settings["command"])
    assert main([*words[2:], "--out", str(tmp_path / "again")]) == 0
    (again,) = (tmp_path / "again").iterdir()
    assert np.array_equal(pixels(path), pixels(again))


class Told(io.StringIO):
    """A pipe: what was written is seen behind it once it is flushed."""

    seen = ""

    def flush(self) -> None:
        self.seen = self.getvalue()


def test_the_name_of_a_finished_picture_is_told_before_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(Namespace(), {}, tmp_path, {})
    monkeypatch.setattr("sys.stdout", Told())
    for stem in ("first", "second"):
        writer.write(Image.new("RGB", (4, 4)), stem, {})
        assert sys.stdout.seen.endswith(f"{tmp_path / stem}.png\n")  # type: ignore[attr-defined]
