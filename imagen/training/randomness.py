"""Randomness as a function of (seed, step, index in the global batch): resuming needs no generator state, and a run
does not depend on how many processes or accumulation steps share its batch.

The few numbers per picture come from one generator per step on the CPU; the noise of each picture from one generator,
reseeded per picture, on the training device. What dropout drops inside a network is a hash of one seed per picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed from a hash of its arguments: independent streams for each purpose and position."""
    words = ":".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") >> 1


def row_seeds(seed: int, purpose: str, step: int, rows: range) -> Tensor:
    """(len(rows),) int64: a seed for each of these rows of the global batch, on the CPU."""
    return torch.tensor([derive_seed(seed, purpose, step, row) for row in rows])


def draw_noise(
    shape: Sequence[int], seed: int, purpose: str, step: int, rows: range, generator: torch.Generator
) -> Tensor:
    """Standard normal noise (len(rows), *shape), float32, one reseeded stream per row, on the generator's device."""
    noise = torch.empty(len(rows), *shape, device=generator.device)
    for place, own_seed in enumerate(row_seeds(seed, purpose, step, rows).tolist()):
        generator.manual_seed(own_seed)
        noise[place].normal_(generator=generator)
    return noise
