"""Work that the processes of a run share out: each does its turns, and the parts are added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


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
