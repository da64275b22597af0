"""What is random about a global batch, and what the loader gives -> what the objective needs, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imagen.conditions.condition import Condition, Draw, arguments
from imagen.training.randomness import derive_seed, draw_noise, row_seeds


class Draws(NamedTuple):
    """The random numbers of some rows of a global batch, on the CPU.

    t (B,) float64 in [0, 1); drop (B,) bool, True where the text is dropped; aug_level (B,) float64 in [0, 1).
    """

    t: Tensor
    drop: Tensor
    aug_level: Tensor

    def rows(self, rows: range) -> Draws:
        """The draws of these rows."""
        return Draws(*(part[rows.start : rows.stop] for part in self))


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


@dataclass(frozen=True)
class Batch:
    """What one micro-batch needs, on the training device.

    image (B, C, H, W) in [-1, 1]; noise like image; t (B,); inputs: what else the network's forward is given, by name;
    parts: what each condition read, in their order, of which other inputs can be drawn.
    """

    image: Tensor
    noise: Tensor
    t: Tensor
    inputs: Mapping[str, Any]
    parts: Sequence[Any] = ()


class BatchMaker:
    """Callable: loader batch, its draws and rows -> `Batch` on the device.

    Args:
        conditions: of the stage.
        seed: of the noise.
        dtype: of the weights.
    """

    def __init__(
        self, conditions: Sequence[Condition[Any]], seed: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.conditions, self.seed, self.dtype, self.device = conditions, seed, dtype, device
        self.generator = torch.Generator(device)

    def __call__(self, raw: Mapping[str, Any], draws: Draws, step: int, rows: range) -> Batch:
        """`rows` are the positions of this micro-batch in the global batch of `step`."""
        image = raw["image"].to(self.device, self.dtype, non_blocking=True)
        parts = [condition.batch(raw, image, draws.drop) for condition in self.conditions]
        return self.redrawn(Batch(image, image, draws.t, {}, parts), draws, step, rows)

    def redrawn(self, batch: Batch, draws: Draws, step: int, rows: range) -> Batch:
        """The pictures and conditions of `batch` with all that is random as at `step`."""

        def noise(purpose: str, shape: Sequence[int]) -> Tensor:
            return draw_noise(shape, self.seed, purpose, step, rows, self.generator).to(self.dtype)

        t, drop, level = (drawn.to(self.device, non_blocking=True) for drawn in draws)
        draw = Draw(drop, level, noise)
        given = [condition.inputs(part, draw) for condition, part in zip(self.conditions, batch.parts, strict=True)]
        inputs = arguments(given)
        inputs["dropout_seeds"] = row_seeds(self.seed, "network", step, rows).to(self.device, non_blocking=True)
        return replace(batch, noise=noise("image", batch.image.shape[1:]), t=t, inputs=inputs)
