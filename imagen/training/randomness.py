"""Randomness as a function of (seed, step, index in the global batch): resuming needs no generator state, and a run
does not depend on how many processes or accumulation steps share its batch.

The few numbers per picture come from one generator per step on the CPU; the noise from one generator on the training
device, reseeded per picture, or on an accelerator per block of pictures that stand together in the global batch. What
dropout drops inside a network is a hash of one seed per picture.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

AT_ONCE = 2**22  # numbers; a block of them takes 16 MB


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
    """Standard normal noise (len(rows), *shape), float32, on the generator's device.

    One stream, reseeded, per block of rows (:func:`rows_at_once`) of the global batch, whose other rows' are left out.
    """
    many = rows_at_once(math.prod(shape), generator.device)
    first = rows.start // many
    blocks = range(first, -(-rows.stop // many))
    noise = torch.empty(many * len(blocks), *shape, device=generator.device)
    for place, own_seed in enumerate(row_seeds(seed, purpose, step, blocks).tolist()):
        generator.manual_seed(own_seed)
        noise[many * place : many * (place + 1)].normal_(generator=generator)
    return noise[rows.start - many * first :][: len(rows)]


def rows_at_once(numbers: int, device: torch.device) -> int:
    """How many rows of so many numbers have a stream of noise together: a power of two, whatever a batch is.

    One on a CPU. An accelerator would wait for the calls: there as many as make :data:`AT_ONCE` numbers.
    """
    return 1 if device.type == "cpu" else 1 << max(0, (AT_ONCE // numbers).bit_length() - 1)
