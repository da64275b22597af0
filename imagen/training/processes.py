"""The processes of a run, as accelerate launches them: work is shared out in turns, and the parts are added up.

And whether what a configuration asks for is there: processes that can share its batch, packages, a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from imagen.disk import occupied
from imagen.errors import ConfigError, config_errors
from imagen.training.config.sections import RunSettings


def alone(part: Tensor) -> Tensor:
    """A part that is the whole."""
    return part


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank, world: its number, and how many there are.
        add: a tensor of zeros but for this process's part -> the whole, the same on every process; all must call it.
    """

    rank: int = 0
    world: int = 1
    add: Callable[[Tensor], Tensor] = alone

    @classmethod
    def of(cls, accelerator: Accelerator) -> Processes:
        """Those that accelerate has launched."""
        rank, world = accelerator.process_index, accelerator.num_processes
        return cls(rank, world, partial(accelerator.reduce, reduction="sum")) if world > 1 else cls()

    def turns(self, count: int, size: int) -> Iterator[range]:
        """This process's parts of ``count`` things in parts of ``size``, dealt out in turn."""
        for turn, start in enumerate(range(0, count, size)):
            if turn % self.world == self.rank:
                yield range(start, min(start + size, count))


@contextmanager
def alone_in(run_dir: str) -> Iterator[None]:
    """Keep a run's folder for this run, whose first process holds it. Raises: ConfigError where another run has it."""
    with ExitStack() as held:
        if int(os.environ.get("RANK", "0")) == 0:  # as torchrun and accelerate tell their processes
            try:
                with config_errors("run_dir "):
                    held.enter_context(occupied(Path(run_dir)))
            except OSError as error:
                told = (
                    f"run_dir {run_dir!r} cannot be made or written to ({error.strerror or error}): give another folder"
                )
                raise ConfigError(told) from error
        yield


def make_accelerator(config: RunSettings) -> Accelerator:
    """accelerate's plumbing; its trackers are not started yet."""
    return Accelerator(
        mixed_precision=config.train.mixed_precision,
        log_with=list(config.train.trackers) or None,
        project_dir=config.run_dir,
        step_scheduler_with_optimizer=False,
    )


def check_processes(config: RunSettings, accelerator: Accelerator) -> None:
    """Raises ConfigError for a launch other than data parallel, or a batch that its processes cannot share equally."""
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ConfigError(
            f"launched with {kind.value}, but sharded weights are not supported: use configs/accelerate/ddp.yaml"
        )
    world = accelerator.num_processes
    parts = config.train.accumulation * world
    if config.train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size {config.train.batch_size} is not divisible by {config.train.accumulation} accumulation "
            f"steps x {world} processes: use a multiple of {parts}"
        )


def check_optimizer(config: RunSettings) -> None:
    """Raises ConfigError where optim.kind adam8bit lacks its package, its GPU or weights of a dtype it knows."""
    if config.optim.kind != "adam8bit":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("optim.kind adam8bit needs bitsandbytes: pip install 'bitsandbytes>=0.45', or use adamw")
    if not torch.cuda.is_available():
        raise ConfigError("optim.kind adam8bit needs a CUDA GPU, and torch finds none here: use optim.kind adamw")
    if config.train.dtype == "float64":
        raise ConfigError("optim.kind adam8bit cannot train float64 weights: set train.dtype float32, or use adamw")
