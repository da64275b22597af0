"""Which sample stands where: the index at (step, position in the global batch), whatever the number of processes.

Nothing here keeps state, so resuming at a step means asking from that step on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


def sample_index(seed: int, step: int, position: int, batch_size: int, length: int | None) -> int:
    """Index of the sample at ``position`` of the global batch of ``step`` (both from 0).

    An endless source (``length=None``) is read in order. A finite one is read epoch by epoch, each epoch a permutation
    of its own; batches run across the border of two epochs. The result counts on through the epochs: the item is
    ``index % length`` and the epoch ``index // length``, so that a source can crop an item anew each time.

    Raises:
        ValueError: a position outside the batch, or an empty source.
    """
    if not 0 <= position < batch_size or step < 0:
        raise ValueError(f"position is {position} at step {step}; expected 0 <= position < {batch_size} and step >= 0")
    draw = step * batch_size + position
    if length is None:
        return draw
    if length < 1:
        raise ValueError(f"the source has {length} samples; expected at least one")
    epoch, place = divmod(draw, length)
    return epoch * length + int(_permutation(seed, epoch, length)[place])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return rng.permutation(length)


def micro_positions(batch_size: int, micro: int, accumulation: int = 1, rank: int = 0, world: int = 1) -> range:
    """Positions in the global batch of one process's micro-batch number ``micro``.

    A step's global batch is cut into ``accumulation`` equal parts, each of those into ``world`` equal parts, in order.

    Raises:
        ValueError: ``batch_size`` is not divisible by ``accumulation * world``.
    """
    parts = accumulation * world
    if parts < 1 or batch_size % parts:
        raise ValueError(
            f"the global batch of {batch_size} cannot be divided into {accumulation} accumulation steps × {world} "
            f"processes; choose a batch size that is a multiple of {parts}"
        )
    if not (0 <= rank < world and 0 <= micro < accumulation):
        raise ValueError(f"rank {rank} of {world}, micro-batch {micro} of {accumulation}; expected both to be in range")
    each = batch_size // parts
    start = (micro * world + rank) * each
    return range(start, start + each)


class StepSampler(Sampler[list[int]]):
    """Batch sampler for a ``DataLoader``: this process's micro-batches from ``start_step`` on, as lists of indices.

    Yields ``(num_steps - start_step) * accumulation`` lists in the order the trainer uses them, or never ends with
    ``num_steps=None``. Do not let accelerate shard the loader again: every process makes its own with its rank.

    Raises:
        ValueError: as :func:`sample_index` and :func:`micro_positions`.
    """

    def __init__(
        self,
        length: int | None,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        num_steps: int | None = None,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start_step, self.num_steps = start_step, num_steps
        self.positions = [micro_positions(batch_size, m, accumulation, rank, world) for m in range(accumulation)]
        sample_index(seed, start_step, 0, batch_size, length)  # a bad source is told here, not in a worker

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while self.num_steps is None or step < self.num_steps:
            for positions in self.positions:
                yield [sample_index(self.seed, step, p, self.batch_size, self.length) for p in positions]
            step += 1
