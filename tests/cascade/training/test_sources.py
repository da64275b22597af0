"""Every source of pictures: the same pictures give the same run, and a resumed run is the whole one bit for bit."""

from __future__ import annotations

import csv
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen.cli.train import main
from imagen.data.order import sample_index

ROOT = Path(__file__).resolve().parents[3]
STEPS, BATCH = 6, 4
COUNT = STEPS * BATCH  # one epoch
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def folder(root: Path, order: list[int]) -> dict[str, Any]:
    for place, number in enumerate(order):
        (root / f"{place:02d}.png").write_bytes(png(number))
    return {"data.kind": "folder"}


def table(root: Path, order: list[int]) -> dict[str, Any]:
    folder(root, order)
    with (root / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["file_name"], *([f"{place:02d}.png"] for place in range(len(order)))])
    return {"data.kind": "table", "data.path": str(root / "list.csv")}


def hub(root: Path, order: list[int]) -> dict[str, Any]:
    import datasets

    rows = {"image": [{"bytes": png(number), "path": None} for number in order]}
    datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image()})).save_to_disk(str(root))
    return {"data.kind": "hub"}


def shards(root: Path, order: list[int]) -> dict[str, Any]:
    for first in range(0, len(order), 12):
        with tarfile.open(root / f"{first:03d}.tar", "w") as archive:
            for place, number in enumerate(order[first : first + 12], start=first):
                info = tarfile.TarInfo(f"{place:03d}.png")
                info.size = len(data := png(number))
                archive.addfile(info, io.BytesIO(data))
    return {"data.kind": "shards"}


def hub_stream(root: Path, order: list[int]) -> dict[str, Any]:
    return {**hub(root, order), "data.streaming": True}


def shard_stream(root: Path, order: list[int]) -> dict[str, Any]:
    return {**shards(root, order), "data.streaming": True}


def shapes(root: Path, order: list[int]) -> dict[str, Any]:
    return {"data.kind": "shapes", "data.path": None}


STORED = [folder, table, hub, shards]
STREAMS = [hub_stream, shard_stream]
EVERY = [*STORED, *STREAMS, shapes]


@pytest.fixture
def settings(write_config: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """settings(make, order, run, **changes) -> configuration file of a run on pictures stored in that order."""

    def write(make: Any, order: list[int], run: Path, **changes: Any) -> Path:
        root = tmp_path / f"data-{make.__name__}"
        root.mkdir()
        train = {"train.steps": STEPS, "train.batch_size": BATCH, "train.log_every": 1, "train.num_workers": 1}
        chosen = {"data.path": str(root), **make(root, order), **train, **changes}
        return write_config(run_dir=str(run), **chosen).rename(tmp_path / f"{run.name}.yaml")

    return write


def same_weights(one: Path, other: Path) -> bool:
    return (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


def test_the_same_pictures_give_the_same_loss_curve_from_every_source(settings, read_metrics, tmp_path):
    runs = [tmp_path / make.__name__ for make in (*STORED, *STREAMS)]
    for make, run in zip(STORED, runs, strict=False):
        assert main(["--config", str(settings(make, list(range(COUNT)), run))]) == 0
    # a stream has its own order; stored in that of the others' first epoch, and not shuffled, it gives theirs
    drawn = [sample_index(0, place // BATCH, place % BATCH, BATCH, COUNT) for place in range(COUNT)]
    for make, run in zip(STREAMS, runs[len(STORED) :], strict=True):
        order = drawn if make is hub_stream else in_shard_order(drawn)
        assert main(["--config", str(settings(make, order, run, **{"data.shuffle": 1}))]) == 0
    for run in runs[1:]:
        assert read_metrics(run) == read_metrics(runs[0])
        assert same_weights(run, runs[0])


def in_shard_order(drawn: list[int]) -> list[int]:
    """So stored in shards of twelve that they are read in the order ``drawn`` in the first epoch."""
    from imagen.data.streams import Lane, ShardLengths

    class Shards:
        def __len__(self) -> int:
            return len(drawn) // 12

    parts = [drawn[first : first + 12] for first in range(0, len(drawn), 12)]
    stored: list[list[int]] = [[]] * len(parts)
    for part, shard in zip(parts, Lane(Shards(), 0, 1, 0, 1, ShardLengths(None)).order(0), strict=True):  # type: ignore[arg-type]
        stored[shard] = part
    return [number for part in stored for number in part]


@pytest.mark.parametrize("make", EVERY)
def test_a_resumed_run_is_the_whole_one(settings, read_metrics, tmp_path, make):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {"data.shuffle": 5} if make in STREAMS else {}
    path = settings(make, list(range(10)), whole, **changes)
    assert main(["--config", str(path)]) == 0
    for steps in (2, 5, STEPS):
        assert main(["--config", str(path), "--run_dir", str(parts), "--train.steps", str(steps)]) == 0
    assert read_metrics(parts) == read_metrics(whole)
    assert same_weights(parts, whole)


def test_a_stream_s_first_pictures_are_held_out_as_a_folder_s_are(settings, read_metrics, tmp_path):
    runs = []
    for make in (folder, hub_stream):
        root = tmp_path / f"held-out-{make.__name__}"
        root.mkdir()
        stored = {key.removeprefix("data."): value for key, value in make(root, list(range(100, 105))).items()}
        validation = {"every": 3, "samples": 5, "levels": 2, "batch_size": 2, "data": {"path": str(root), **stored}}
        path = settings(folder, list(range(9)), tmp_path / make.__name__, validation=validation)
        assert main(["--config", str(path)]) == 0
        shutil.rmtree(tmp_path / "data-folder")
        runs.append([line for line in read_metrics(tmp_path / make.__name__) if "val_loss" in line])
    assert len(runs[0]) == 2
    assert runs[0] == runs[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("make", EVERY)
def test_on_two_processes_a_resumed_run_is_the_whole_one_and_that_of_one(
    settings, on_two_processes, read_metrics, tmp_path, make
):
    one, whole, parts = (tmp_path / name for name in ("one", "whole", "parts"))
    changes = {"data.shuffle": 3, "data.lanes": 2} if make in STREAMS else {}
    path = settings(make, list(range(10)), one, **{"train.dtype": "float64", **changes})
    assert main(["--config", str(path)]) == 0
    on_two_processes("--config", str(path), "--run_dir", str(whole))
    for steps in (3, STEPS):
        on_two_processes("--config", str(path), "--run_dir", str(parts), "--train.steps", str(steps))
    assert read_metrics(parts) == read_metrics(whole)
    assert same_weights(parts, whole)
    for line, other in zip(read_metrics(one), read_metrics(whole), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-8)
