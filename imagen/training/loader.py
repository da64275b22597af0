"""The source that a configuration names, and a loader of this process's share of every global batch."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch.utils.data import DataLoader

from imagen.data import (
    Fields,
    FolderRecords,
    PictureDataset,
    Prepare,
    Records,
    ShapesDataset,
    Source,
    StepSampler,
    Stream,
    StreamBatches,
    StreamDataset,
    collate,
)
from imagen.training.config import DataConfig, RunConfig
from imagen.training.errors import ConfigError


def make_records(data: DataConfig) -> Records:
    """The stored pictures that `data` names, of any kind but shapes.

    Raises:
        ValueError: they are not there, or are not what the configuration says.
    """
    path = data.path or ""  # DataConfig has checked it
    if data.kind == "folder":
        return FolderRecords(path, data.captions, data.conditioning, data.embedding)
    if data.kind == "table":
        from imagen.data.table import TableRecords

        return TableRecords(path, _fields(data))
    if data.kind == "hub":
        from imagen.data.hub import HubRecords

        return HubRecords(path, data.split, _fields(data))
    from imagen.data.tar import ShardRecords

    return ShardRecords(_listed(path), _fields(data))


def make_stream(data: DataConfig) -> Stream:
    """The stored pictures that `data` names, to be read from start to end.

    Raises:
        ValueError: as :func:`make_records`.
    """
    path = data.path or ""
    if data.kind == "hub":
        from imagen.data.hub import HubStream

        return HubStream(path, data.split, _fields(data))
    from imagen.data.shard_stream import ShardStream

    return ShardStream(_listed(path), _fields(data))


def _fields(data: DataConfig) -> Fields:
    return Fields(data.image_column, data.caption_column, data.conditioning, data.embedding)


def _listed(path: str) -> list[str]:
    return [part.strip() for part in path.split(",")]


def make_source(config: RunConfig, seed: int | None = None) -> PictureDataset | ShapesDataset | StreamDataset:
    """The pictures that `config` trains on.

    Args:
        seed: replaces the run's seed where the source draws pictures, for samples that training does not see.

    Raises:
        ConfigError: nothing there, or sizes that the source cannot make.
    """
    data, stage, unet = config.data, config.stage, config.unet
    seed = config.train.seed if seed is None else seed
    try:
        if data.kind == "shapes":
            split = cast("Literal['train', 'heldout']", data.split)  # it checks the word itself
            return ShapesDataset(stage.size, seed, split, data.crop, stage.lowres_size, data.category)
        prepare = Prepare(
            stage.size,
            data.crop,
            stage.lowres_size,
            data.square,
            data.flip,
            captions="required" if config.text.used and data.embedding is None else "optional",
            template=data.template,
            channels=unet.get("in_channels", 3),
            lowres_channels=unet.get("lowres_channels", 3),
            text=None if data.embedding is None else (config.text.max_length, unet.get("text_dim", 4096)),
            resize=data.resize or "area",
        )
        if data.streaming:
            return StreamDataset(make_stream(data), prepare, seed, data.lanes, data.shuffle)
        return PictureDataset(make_records(data), prepare, seed)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error


def outlive_one_signal(_worker: int) -> None:
    """Set up a worker to pass over one SIGTERM or Ctrl-C, which may be meant for the whole job.

    The training process still needs the worker for the step it is in. The second signal acts: Python sends more at its
    exit to workers that do not end by themselves.
    """

    def next_time(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, next_time)
    signal.signal(signal.SIGINT, next_time)


def make_loader(
    config: RunConfig, source: Source | StreamDataset, start: int, rank: int, world: int
) -> DataLoader[dict[str, Any]]:
    """Micro-batches of one process from step `start` to the end, in the order they are used; whatever the workers.

    A stream is read by a single worker, which decodes on `train.num_workers` threads.

    Raises:
        ConfigError: a batch or lanes that cannot be shared out.
    """
    train = config.train
    workers = train.num_workers
    batches: Any
    try:
        if isinstance(source, StreamDataset):
            lengths = Path(config.run_dir) / "shards.jsonl"
            batches = StreamBatches(
                source, train.batch_size, start, train.steps, train.accumulation, rank, world, lengths, max(1, workers)
            )
            how: dict[str, Any] = {"batch_size": None}
            workers = min(workers, 1)
        else:
            batches = source
            sampler = StepSampler(
                source.length, train.batch_size, train.seed, start, train.steps, train.accumulation, rank, world
            )
            how = {"batch_sampler": sampler, "collate_fn": collate}
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    # forked workers are children of this process and notice its death; those of a fork server would outlive a SIGKILL
    context = "fork" if workers and "fork" in multiprocessing.get_all_start_methods() else None
    return DataLoader(
        batches,
        **how,
        num_workers=workers,
        multiprocessing_context=context,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=outlive_one_signal if workers else None,
    )
