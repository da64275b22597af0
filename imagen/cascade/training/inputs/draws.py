"""The random numbers of a global batch: noise levels, dropped captions, levels of noise on the low-res picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imagen.training.randomness import derive_seed


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
