"""The source that a run trains on, and a loader of this process's share of every global batch."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from imagen.cascade.training.config.run import RunConfig
from imagen.data import (
    PictureDataset,
    ShapesDataset,
    Source,
    StepSampler,
    StreamBatches,
    StreamDataset,
    collate,
    make,
)
from imagen.data.fields import Encoded, Kind, Paired
from imagen.errors import ConfigError
from unets.contract import facts


def make_source(config: RunConfig, seed: int | None = None) -> PictureDataset | ShapesDataset | StreamDataset:
    """The pictures that `config` trains on.

    Args:
        seed: replaces the run's seed where the source draws pictures, for samples that training does not see.

    Raises:
        ConfigError: nothing there, or sizes that the source cannot make.
    """
    data, stage = config.data, config.stage
    # without a section the network is that of train.init_from, which need not be there to look at data
    unet = facts(config.unet or {"kind": "EfficientUNet"})
    fields: dict[str, Kind] = {}
    try:
        if data.conditioning is not None and stage.lowres_size is not None:
            fields["conditioning"] = Paired(stage.lowres_size, unet.lowres_channels)
        if data.embedding is not None and unet.text_dim is not None:
            fields["embedding"] = Encoded(config.text.max_length, unet.text_dim)
        want = make.Want(
            stage.size,
            stage.lowres_size if data.conditioning is None else None,
            channels=unet.in_channels,
            captions="required" if config.text.used and data.embedding is None else "optional",
            fields=fields,
        )
        return make.make_source(data, want, config.train.seed if seed is None else seed)
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
