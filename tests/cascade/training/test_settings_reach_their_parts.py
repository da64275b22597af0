"""Every setting of a run, one by one, changes what the run makes; a new field without an entry here fails."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.cascade.training.config.run import LossPerLevelConfig, RunConfig, StageTrainConfig
from imagen.cascade.training.config.sections import StageConfig
from imagen.cascade.training.inputs.source import make_source
from imagen.cascade.training.task import StageTask
from imagen.data.config import DataConfig
from imagen.training.config.sections import EmaConfig, OptimConfig
from imagen.training.loader import make_loader
from imagen.training.trainer import Trainer
from tests.cascade.training.conftest import TINY
from tests.data.icc import DISPLAY_P3, profile

BASE: dict[str, dict[str, Any]] = {
    "optim": {"lr": 1e-2, "warmup": 0},
    "ema": {"decay": 0.9},
    "train": {"steps": 3, "batch_size": 2, "num_workers": 0, "checkpoint_every": 2, "log_every": 2},
    "validation": {},
}
MEASURED = {
    "validation.every": 2,
    "validation.samples": 3,
    "validation.levels": 2,
    "validation.data": DataConfig(split="heldout"),
}
CHANGES: dict[str, dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]] = {  # a change, or before and after
    "optim.kind": {"optim.kind": "adafactor"},
    "optim.lr": {"optim.lr": 1e-3},
    "optim.muon_lr": {"optim.muon_lr": 1e-2},
    "optim.betas": {"optim.betas": (0.5, 0.99)},
    "optim.momentum": ({"optim.kind": "adafactor"}, {"optim.kind": "adafactor", "optim.momentum": 0.9}),
    "optim.eps": {"optim.eps": 1e-3},
    "optim.weight_decay": {"optim.weight_decay": 0.5},
    "optim.warmup": {"optim.warmup": 2},
    "optim.schedule": {"optim.schedule": "linear"},
    "optim.hold": ({"optim.schedule": "cosine"}, {"optim.schedule": "cosine", "optim.hold": 2}),
    "optim.clip_norm": ({"optim.eps": 1.0}, {"optim.eps": 1.0, "optim.clip_norm": 1e-3}),
    "ema.decay": {"ema.decay": 0.05},
    "ema.warmup": {"ema.warmup": False},
    "train.steps": {"train.steps": 4},
    "train.batch_size": {"train.batch_size": 3},
    "train.dtype": {"train.dtype": "float64"},
    "train.seed": {"train.seed": 1},
    "train.stratified_t": {"train.stratified_t": False},
    "train.checkpoint_every": {"train.checkpoint_every": 3},
    "train.keep_last": {"train.keep_last": 1},
    "train.log_every": {"train.log_every": 1},
    "validation.every": {"validation.every": 1},
    "validation.data": {"validation.data": DataConfig(split="heldout", category="single")},
    "validation.samples": {"validation.samples": 2},
    "validation.levels": {"validation.levels": 3},
    "validation.seed": {"validation.seed": 1},
}
ELSEWHERE = {  # changes no number (its own tests show what it does), or ends a run
    *("train.accumulation", "train.num_workers", "train.gradient_checkpointing", "train.compile", "train.init_from"),
    "train.channels_last",
    *("train.drop_variance", "train.time_limit", "train.max_skipped", "train.max_skipped_in_a_row"),
    *("train.trackers", "train.mixed_precision", "validation.batch_size", "validation.scores"),
}


def fields(prefix: str, section: Any) -> set[str]:
    return {f"{prefix}.{item.name}" for item in dataclasses.fields(section)}


def make_config(run: Path, changes: dict[str, Any]) -> RunConfig:
    given = {name: dict(values) for name, values in BASE.items()}
    for key, value in changes.items():
        name, field = key.split(".")
        given[name][field] = value
    return RunConfig(
        str(run),
        unet=TINY["unet"],
        stage=StageConfig(size=8, prediction_type="sample"),
        optim=OptimConfig(**given["optim"]),
        ema=EmaConfig(**given["ema"]),
        train=StageTrainConfig(**given["train"]),
        validation=LossPerLevelConfig(**given["validation"]),
        grid=dataclasses.replace(RunConfig("x").grid, every=0),
    )


def outcome(run: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """What a run leaves behind, but for its clock."""
    trainer = Trainer(StageTask(make_config(run, changes)))
    assert trainer.fit()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": [digest(value) for value in trainer.module.state_dict().values()],
        "average": [digest(value) for value in trainer.ema.average.values()],
        "log": [{key: value for key, value in line.items() if key != "clock"} for line in lines],
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*")),
    }


def digest(value: torch.Tensor) -> str:
    return hashlib.sha256(value.detach().double().numpy().tobytes()).hexdigest()


def test_every_setting_of_the_loop_has_an_entry_here() -> None:
    sections = {"optim": OptimConfig, "ema": EmaConfig, "train": StageTrainConfig, "validation": LossPerLevelConfig}
    known = set().union(*(fields(name, section) for name, section in sections.items()))
    assert CHANGES.keys() | ELSEWHERE == known
    assert not CHANGES.keys() & ELSEWHERE


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, Any]]:
    """Without and with a held-out loss."""
    return {held: outcome(tmp_path_factory.mktemp("run"), MEASURED if held else {}) for held in (False, True)}


@pytest.mark.parametrize("key", CHANGES)
def test_every_setting_of_the_loop_acts(key: str, unchanged: dict[bool, dict[str, Any]], tmp_path: Path) -> None:
    change, held = CHANGES[key], key.startswith("validation.")
    before = unchanged[held]
    if isinstance(change, tuple):
        before, change = outcome(tmp_path / "before", change[0]), change[1]
    after = outcome(tmp_path / "after", {**(MEASURED if held else {}), **change})
    if key.startswith("optim."):
        assert before["weights"] != after["weights"]
    elif key.startswith("ema."):
        assert before["weights"] == after["weights"]
        assert before["average"] != after["average"]
    elif held:
        assert before["average"] == after["average"]
        assert before["log"] != after["log"]
    else:
        named = {"checkpoint_every": "files", "keep_last": "files", "log_every": "log"}
        part = named.get(key.removeprefix("train."), "weights")
        assert before[part] != after[part]


# --- data ------------------------------------------------------------------------------------------------------------

COUNT, WIDTH = 12, 4


def png(number: int, shape: tuple[int, int] = (40, 24)) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as a folder, a table and shards, with captions, pairs and encoded texts."""
    root = tmp_path_factory.mktemp("stored")
    for place in ("folder/stars", "pairs/stars", "profiled", "shards"):
        (root / place).mkdir(parents=True)
    rows = []
    for number in range(COUNT):
        stem = root / "folder" / "stars" / f"{number:02d}"
        stem.with_suffix(".png").write_bytes(png(number, (40, 24 if number else 18)))
        stem.with_suffix(".txt").write_text(f"star {number}")
        stem.with_suffix(".json").write_text(f"a star of {number}")
        with Image.open(stem.with_suffix(".png")) as image:
            image.save(root / "profiled" / f"{number:02d}.png", icc_profile=profile(DISPLAY_P3))
        (root / "profiled" / f"{number:02d}.txt").write_text(f"star {number}")
        np.save(stem.with_suffix(".npy"), np.full((2, WIDTH), number, np.float32))
        (root / "pairs" / "stars" / f"{number:02d}.png").write_bytes(png(100 + number))
        other = f"folder/stars/{(number + 1) % COUNT:02d}.png"
        rows.append([f"folder/stars/{number:02d}.png", other, f"star {number}", f"sun {number}"])
    with (root / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["file_name", "other", "caption", "second"], *rows])
    for first in range(0, COUNT, 4):
        with tarfile.open(root / "shards" / f"{first:02d}.tar", "w") as archive:
            for number in range(first, first + 4):
                for ending, data in (("png", png(number)), ("txt", f"star {number}".encode())):
                    info = tarfile.TarInfo(f"{number:02d}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return root


FOLDER = {"kind": "folder", "path": "folder"}
TABLE = {"kind": "table", "path": "list.csv"}
STREAM = {"kind": "shards", "path": "shards", "streaming": True, "shuffle": 3}
DATA: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # field -> the section before, and the change
    "kind": ({}, FOLDER),
    "path": (FOLDER, {"path": "pairs"}),
    "split": ({}, {"split": "heldout"}),
    "image_column": (TABLE, {"image_column": "other"}),
    "caption_column": (TABLE, {"caption_column": "second"}),
    "captions": (FOLDER, {"captions": "class"}),
    "caption_ending": (FOLDER, {"caption_ending": "json"}),
    "template": (FOLDER, {"template": "a photo of a {}"}),
    "conditioning": (FOLDER, {"conditioning": "pairs"}),
    "embedding": (FOLDER, {"embedding": "npy"}),
    "streaming": ({"kind": "shards", "path": "shards"}, {"streaming": True}),
    "lanes": (STREAM, {"lanes": 2}),
    "shuffle": (STREAM, {"shuffle": 2}),
    "crop": (FOLDER, {"crop": 8}),
    "square": (FOLDER, {"square": "random"}),
    "flip": (FOLDER, {"flip": True}),
    "resize": (FOLDER, {"resize": "bicubic"}),
    "rules": ({**FOLDER, "path": "profiled"}, {"rules": 1}),
    "min_size": (FOLDER, {"min_size": 20}),
    "category": ({}, {"category": "counting"}),
    "variations": ({}, {"variations": 2}),
}


def batches(root: Path, run: Path, section: dict[str, Any]) -> str:
    """The first batches that a run on this data sees, in short."""
    placed = {name: str(root / value) if name in ("path", "conditioning") else value for name, value in section.items()}
    config = RunConfig(
        str(run),
        unet={**TINY["unet"], "lowres_channels": 3, "text_dim": WIDTH if "embedding" in section else None},
        stage=StageConfig(name="sr256", size=16, lowres_size=4),
        data=DataConfig(**placed),
        train=StageTrainConfig(steps=6, batch_size=4, num_workers=0),
    )
    seen = hashlib.sha256()
    for batch in islice(make_loader(config, make_source(config), 0, 0, 1), 6):
        seen.update(json.dumps([batch["key"] if "path" not in section else [], batch["caption"]]).encode())
        for name in ("image", "lowres", "embedding"):
            seen.update(batch[name].numpy().tobytes() if name in batch else b"")
    return seen.hexdigest()


def test_every_setting_of_the_data_acts(stored: Path, tmp_path: Path) -> None:
    # what max_skipped_share does is in test_pictures: it ends a run; training reads no other fields (tests/data)
    assert DATA.keys() | {"max_skipped_share", "fields"} == {item.name for item in dataclasses.fields(DataConfig)}
    for field, (before, change) in DATA.items():
        first = batches(stored, tmp_path, before)
        assert batches(stored, tmp_path, before) == first, "the same data twice"
        assert batches(stored, tmp_path, {**before, **change}) != first, f"data.{field} has no effect"
