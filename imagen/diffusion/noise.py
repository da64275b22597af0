"""Noise of pictures: standard normal numbers, each picture's from a generator of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw(
    generators: Sequence[torch.Generator] | None, shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Standard normal numbers on ``device``, which nobody waits for: a GPU goes on with what it was asked before.

    They are drawn where the generators are, on the CPU as a rule, into memory that CUDA copies from by itself.

    Args:
        generators: one for each picture, so that its numbers do not depend on the batch; None: the device's global one.
        shape: (B, ...).

    Returns:
        of that shape; row i is what ``torch.randn(shape[1:], generator=generators[i])`` gives.
    """
    if generators is None:
        return torch.randn(tuple(shape), device=device, dtype=dtype)
    place = generators[0].device
    pinned = place.type == "cpu" and device.type == "cuda"
    table = torch.empty(tuple(shape), device=place, dtype=dtype, pin_memory=pinned)
    for row, generator in zip(table, generators, strict=True):
        row.normal_(generator=generator)
    return table.to(device, non_blocking=True)
