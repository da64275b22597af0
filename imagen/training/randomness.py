"""Randomness as a function of (seed, step, index in the global batch): resuming needs no generator state, and a run
does not depend on how many processes or accumulation steps share its batch.

The few numbers per picture (time, dropout, augmentation level) come from one generator per step on the CPU; the noise
of each picture from one generator, reseeded per picture, on the training device. What dropout drops inside the network
is a hash of one seed per picture (unets.dropout).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed from a hash of its arguments: independent streams for each purpose and position."""
    words = ":".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") >> 1


def row_seeds(seed: int, purpose: str, step: int, rows: range) -> Tensor:
    """(len(rows),) int64: a seed for each of these rows of the global batch, on the CPU."""
    return torch.tensor([derive_seed(seed, purpose, step, row) for row in rows])


@dataclass(frozen=True)
class Draws:
    """The random numbers of some rows of a global batch, on the CPU.

    t (B,) float64 in [0, 1); drop (B,) bool, True where the text is dropped; aug_level (B,) float64 in [0, 1).
    """

    t: Tensor
    drop: Tensor
    aug_level: Tensor

    def rows(self, first: int, count: int) -> Draws:
        """The draws of rows first ... first + count - 1."""
        part = slice(first, first + count)
        return Draws(self.t[part], self.drop[part], self.aug_level[part])


def draw_batch(seed: int, step: int, batch_size: int, text_dropout: float, stratified: bool) -> Draws:
    """The draws of a whole global batch.

    With `stratified`, the batch's times are one uniform draw in each of batch_size equal intervals, in random order:
    each is still uniform on [0, 1), and a batch covers every noise level (our choice: the paper is silent).
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "batch", step))
    uniform = torch.rand(3, batch_size, generator=generator, dtype=torch.float64)
    t = uniform[0]
    if stratified:
        t = (torch.randperm(batch_size, generator=generator) + t) / batch_size
    return Draws(t=t, drop=uniform[1] < text_dropout, aug_level=uniform[2])


def draw_noise(
    shape: Sequence[int], seed: int, purpose: str, step: int, rows: range, generator: torch.Generator
) -> Tensor:
    """Standard normal noise (len(rows), *shape), float32, one reseeded stream per row, on the generator's device."""
    noise = torch.empty(len(rows), *shape, device=generator.device)
    for place, own_seed in enumerate(row_seeds(seed, purpose, step, rows).tolist()):
        generator.manual_seed(own_seed)
        noise[place].normal_(generator=generator)
    return noise
