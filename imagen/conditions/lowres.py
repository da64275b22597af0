"""The picture that a stage starts from, noised at a level that the network is told (paper, section 2.4, D.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from imagen.diffusion.augmentation import aug_noise_shape, augment_lowres, resize
from imagen.diffusion.schedules import Schedule, level_time, timestep_from_t
from imagen.diffusion.vocabulary import AugSpace, ResizeMode

from .condition import Draw, Given

if TYPE_CHECKING:
    from imagen.data.fields import Paired
    from imagen.data.prepare import Want


@dataclass(frozen=True)
class Lowres:
    """The picture itself made small, or another that is paired with it.

    Attributes:
        size, lowres_size: sides of the whole picture and of what it starts from, in pixels.
        schedule: turns a level into an amount of noise.
        on_levels: it is trained on the schedule's 1000 levels alone.
        space, mode: as :func:`imagen.diffusion.augmentation.augment_lowres` takes them.
        paired: other pictures stand in its place.
    """

    size: int
    lowres_size: int
    schedule: Schedule
    on_levels: bool = False
    space: AugSpace = "lowres"
    mode: ResizeMode = "auto"
    paired: Paired | None = None

    def wants(self, want: Want) -> Want:
        """The picture made small, or its pair."""
        if self.paired is None:
            return replace(want, lowres_size=self.lowres_size)
        return replace(want, fields={**want.fields, "conditioning": self.paired})

    def picture(self, raw: Mapping[str, Any], image: Tensor) -> Tensor:
        """(B, C, h, w) as it comes with the pictures, else made of them; windows shrink as whole pictures do."""
        given = raw.get("conditioning", raw.get("lowres"))
        small = image.shape[-1] * self.lowres_size // self.size
        return resize(image, small) if given is None else given.to(image.device, image.dtype, non_blocking=True)

    def batch(self, raw: Mapping[str, Any], image: Tensor, drop: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The pictures (B, C, h, w), and the sides (H, W) to enlarge them to. They are never dropped."""
        return self.picture(raw, image), (image.shape[-2], image.shape[-1])

    def inputs(self, part: tuple[Tensor, tuple[int, int]], draw: Draw) -> Given:
        """lowres (B, C, H, W), noised, and aug_timestep (B,), how much."""
        lowres, size = part
        level = level_time(draw.level) if self.on_levels else draw.level
        noise = draw.noise("lowres", aug_noise_shape(lowres.shape, size, self.space)[1:])
        noised = augment_lowres(lowres, level, noise, size, self.space, self.schedule, self.mode)
        return Given({"lowres": noised, "aug_timestep": timestep_from_t(level).to(lowres.dtype)})
