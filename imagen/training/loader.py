"""A loader of this process's share of every global batch."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from imagen.data.order import StepSampler
from imagen.data.pictures import StreamBatches, StreamDataset
from imagen.data.sources import Source, collate
from imagen.errors import ConfigError
from imagen.training.config.sections import RunSettings


def outlive_one_signal(_worker: int) -> None:
    """Set up a worker to pass over one SIGTERM or Ctrl-C, which may be meant for the whole job.

    The training process still needs the worker for the step it is in. The second signal acts: Python sends more at its
    exit to workers that do not end by themselves.
    """

    def next_time(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, next_time)
    signal.signal(signal.SIGINT, next_time)


@contextmanager
def batches_of(loader: DataLoader[dict[str, Any]]) -> Iterator[Iterator[dict[str, Any]]]:
    """The batches, for the time of a `with` block. However it ends, the workers end with it.

    An error's traceback would else keep the iterator, and the workers with it, until the exit, where Python waits for
    them: its one SIGTERM is passed over.
    """
    batches: Any = iter(loader)
    try:
        yield batches
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # torch has no other name for it


@dataclass(frozen=True)
class Collate:
    """Samples, or of a stream what is collated already, -> a batch, made `ready` by its task."""

    ready: Callable[[dict[str, Any]], dict[str, Any]]

    def __call__(self, samples: Any) -> dict[str, Any]:
        return self.ready(samples if isinstance(samples, dict) else collate(samples))


def as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """Nothing is left to do."""
    return batch


def make_loader(
    config: RunSettings,
    source: Source | StreamDataset,
    start: int,
    rank: int,
    world: int,
    ready: Callable[[dict[str, Any]], dict[str, Any]] = as_it_is,
) -> DataLoader[dict[str, Any]]:
    """Micro-batches of one process from step `start` to the end, in the order they are used; whatever the workers.

    A stream is read by a single worker, which decodes on `train.num_workers` threads.

    Args:
        ready: what its task has done to each batch where it was loaded.

    Raises:
        ConfigError: a batch or lanes that cannot be shared out.
    """
    train, workers = config.train, config.train.num_workers
    batches: Any = source
    share = (train.accumulation, rank, world)
    try:
        if isinstance(source, StreamDataset):
            lengths = Path(config.run_dir) / "shards.jsonl"
            batches = StreamBatches(source, train.batch_size, start, train.steps, *share, lengths, max(1, workers))
            how: dict[str, Any] = {"batch_size": None}
            workers = min(workers, 1)
        else:
            sampler = StepSampler(source.length, train.batch_size, train.seed, start, train.steps, *share)
            how = {"batch_sampler": sampler}
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    # forked workers are children of this process and notice its death; those of a fork server would outlive a SIGKILL
    context = "fork" if workers and "fork" in multiprocessing.get_all_start_methods() else None
    if workers:  # tokenizers warn of a fork after they have used threads, and workers share the cores as it is
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return DataLoader(
        batches,
        **how,
        collate_fn=Collate(ready),
        num_workers=workers,
        multiprocessing_context=context,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=outlive_one_signal,
    )
