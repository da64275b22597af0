"""Training on stored pictures: bad ones are told once and limited, resume is exact, other channels and pairs work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imagen.cli.check_data import main as check
from imagen.cli.train import main as train
from imagen.training.telling import SkipFile


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty pictures, of which one is empty, one no picture, and one is named wrongly."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / f"{number:02d}.png")
    (folder / "03.png").write_bytes(b"")
    (folder / "07.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(folder / "11.png", "JPEG")
    return folder


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


EXPECTED = [("03.png", "skipped"), ("07.png", "skipped"), ("11.png", "repaired")]


def test_bad_pictures_are_told_once_and_the_run_goes_on(write_config, pictures, tmp_path, capsys):
    changes = {"data.kind": "folder", "data.path": str(pictures), "data.max_skipped_share": 0.1, "train.steps": 12}
    path = str(write_config(**changes))
    assert train(["--config", path, "--train.num_workers", "1"]) == 0
    found = lines(tmp_path / "run" / "skipped.jsonl")
    assert sorted((line["key"], line["action"]) for line in found) == EXPECTED
    assert "2 unusable pictures" in capsys.readouterr().err
    part = ["--config", path, "--run_dir", str(tmp_path / "part")]
    assert train([*part, "--train.steps", "4"]) == 0
    with pytest.warns(UserWarning, match=r"train\.steps 4 -> 12"):
        assert train(part) == 0
    assert sorted((line["key"], line["action"]) for line in lines(tmp_path / "part" / "skipped.jsonl")) == EXPECTED
    whole, resumed = (
        load_file(tmp_path / run / "model" / "unet" / "diffusion_pytorch_model.safetensors") for run in ("run", "part")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_too_many_bad_pictures_stop_the_run_with_the_reason(write_config, pictures, tmp_path, capsys):
    changes = {"data.kind": "folder", "data.path": str(pictures), "data.max_skipped_share": 0.05, "train.steps": 40}
    path = str(write_config(**changes))
    assert train(["--config", path]) == 1
    said = capsys.readouterr().err
    assert "2 of 20 pictures cannot be used, more than data.max_skipped_share 0.05 allows" in said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "state").is_dir(), "work done is kept"
    assert train(["--config", path, "--data.max_skipped_share", "0.1"]) == 0


def test_check_finds_before_training_what_training_finds(write_config, pictures, tmp_path, capsys):
    path = str(write_config(**{"data.kind": "folder", "data.path": str(pictures), "train.num_workers": 1}))
    assert check(["--config", path]) == 1
    said = capsys.readouterr().out
    assert "20 pictures: 18 usable, 1 of them repaired; 2 not usable" in said
    assert "1 skipped: the file is empty (03.png)" in said
    assert "training would stop: 2 of 20" in said
    assert [(line["key"], line["action"]) for line in lines(tmp_path / "run" / "checked.jsonl")] == EXPECTED
    assert check(["--config", path, "--data.max_skipped_share", "0.1"]) == 0
    Image.new("RGB", (9, 9)).save(pictures / "03.png")
    assert check(["--config", path, "--data.max_skipped_share", "0.1"]) == 0
    left = [(line["key"], line["action"]) for line in lines(tmp_path / "run" / "checked.jsonl")]
    assert left == EXPECTED[1:], "what was mended since the last check is no more in the list"
    assert check(["--config", path, "--data.path", str(tmp_path / "nowhere")]) == 2
    assert check(["--config", str(write_config())]) == 2  # shapes: nothing is stored


@pytest.mark.parametrize("workers", ["0", "1"])
def test_shards_that_cannot_be_opened_stop_the_run_in_one_line(write_config, capsys, workers):
    changes = {"data.kind": "shards", "data.streaming": True, "data.path": "nowhere://bucket/{0..1}.tar"}
    assert train(["--config", str(write_config(**changes)), "--train.num_workers", workers]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("train.py: error: shard 'nowhere://bucket/")
    assert "cannot be opened: Protocol not known: nowhere" in last


def test_processes_share_one_skip_file(tmp_path):
    from imagen.data.sources import Note

    path = tmp_path / "skipped.jsonl"
    one, other = SkipFile(path, 10, 0.1), SkipFile(path, 10, 0.1)
    one.add([Note("a", "skipped", "broken"), Note("a", "skipped", "broken"), Note("c", "repaired", "turned")])
    other.add([Note("b", "skipped", "größer")])
    assert [one.refresh(), other.refresh()] == [2, 2]
    assert one.exceeded
    assert other.exceeded
    with path.open("ab") as stream:
        stream.write(b'{"key": "half')  # a process was killed here
    later = SkipFile(path, 20, 0.1)
    later.add([Note("b", "skipped", "größer"), Note("d", "skipped", "gone")])
    assert [line["key"] for line in lines(path)] == ["a", "c", "b", "d"]
    assert (later.refresh(), later.exceeded) == (2, False), "what was mended before this start does not count"
    later.add([Note("e", "skipped", "gone")])
    assert later.exceeded


def test_image_to_image_in_one_channel_of_sixteen_bits(write_config, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        for number in range(6):
            Image.fromarray(rng.integers(0, 65536, (10, 10), np.uint16)).save(tmp_path / name / f"{number}.png")
    changes = {
        "stage.name": "sr256",
        "stage.lowres_size": 8,
        "unet.in_channels": 1,
        "unet.out_channels": 1,
        "unet.lowres_channels": 1,
        "data.kind": "folder",
        "data.path": str(tmp_path / "after"),
        "grid.every": 3,
        "grid.count": 2,
    }
    path = str(write_config(**changes))
    assert train(["--config", path]) == 2  # a low-res input as large as the picture, and nothing to make it from
    assert train(["--config", path, "--data.conditioning", str(tmp_path / "before")]) == 0
    assert (tmp_path / "run" / "samples" / "step-00000006.png").is_file()
