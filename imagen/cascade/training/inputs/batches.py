"""From what the loader gives to what the objective needs: the training device, the noise, the conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from imagen.cascade.training.inputs.draws import Draws
from imagen.conditions.condition import Condition, Draw, arguments
from imagen.training.randomness import draw_noise, row_seeds


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

    def seeded(self, seed: int) -> BatchMaker:
        """One with other noise."""
        return BatchMaker(self.conditions, seed, self.dtype, self.device)

    def __call__(self, raw: Mapping[str, Any], draws: Draws, step: int, rows: range) -> Batch:
        """`rows` are the positions of this micro-batch in the global batch of `step`."""
        image = raw["image"].to(self.device, self.dtype, non_blocking=True)
        parts = [condition.batch(raw, image, draws.drop) for condition in self.conditions]
        return self.redrawn(Batch(image, image, draws.t, {}, parts), draws, step, rows)

    def redrawn(self, batch: Batch, draws: Draws, step: int, rows: range) -> Batch:
        """The pictures and conditions of `batch` with all that is random as at `step`."""

        def noise(purpose: str, shape: Sequence[int]) -> Tensor:
            return draw_noise(shape, self.seed, purpose, step, rows, self.generator).to(self.dtype)

        draw = Draw(draws.drop.to(self.device), draws.aug_level.to(self.device), noise)
        given = [condition.inputs(part, draw) for condition, part in zip(self.conditions, batch.parts, strict=True)]
        inputs = arguments(given)
        inputs["dropout_seeds"] = row_seeds(self.seed, "network", step, rows).to(self.device)
        return replace(batch, noise=noise("image", batch.image.shape[1:]), t=draws.t.to(self.device), inputs=inputs)
