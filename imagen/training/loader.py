"""The source that a configuration names, and a loader of this process's share of every global batch."""

from __future__ import annotations

import multiprocessing
import signal
from typing import Any, Literal, cast

import torch
from torch.utils.data import DataLoader, Dataset

from imagen.data import FolderDataset, ShapesDataset, Source, StepSampler, collate
from imagen.training.config import ConfigError, RunConfig


def make_source(config: RunConfig, seed: int | None = None) -> Source:
    """The pictures that `config` trains on.

    Args:
        seed: replaces the run's seed where the source draws pictures, for samples that training does not see.

    Raises:
        ConfigError: a missing folder, or sizes that the source cannot make.
    """
    data, stage = config.data, config.stage
    seed = config.train.seed if seed is None else seed
    try:
        if data.kind == "folder":
            assert data.path is not None  # checked by DataConfig
            captions: Literal["required", "optional"] = "required" if config.text.used else "optional"
            return FolderDataset(
                data.path, stage.size, seed, data.crop, stage.lowres_size, data.square, data.flip, captions
            )
        return ShapesDataset(stage.size, seed, "train", data.crop, stage.lowres_size, data.category)
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


def make_loader(config: RunConfig, source: Source, start: int, rank: int, world: int) -> DataLoader[dict[str, Any]]:
    """Micro-batches of one process from step `start` to the end, in the order they are used; whatever the workers."""
    train = config.train
    sampler = StepSampler(
        source.length, train.batch_size, train.seed, start, train.steps, train.accumulation, rank, world
    )
    workers = train.num_workers
    # forked workers are children of this process and notice its death; those of a fork server would outlive a SIGKILL
    context = "fork" if workers and "fork" in multiprocessing.get_all_start_methods() else None
    return DataLoader(
        cast("Dataset[Any]", source),
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context=context,
        collate_fn=collate,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=outlive_one_signal if workers else None,
    )
