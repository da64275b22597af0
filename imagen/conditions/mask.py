"""Inpainting: a picture of which a part is to be painted, and where, as input channels (GLIDE, Nichol et al. 2021).

The network sees the picture with zeros where it is masked, and the mask, 1 where it is to be painted. A trained network
is given the channels with weights of zero (``train.init_from``), so that it starts as what it was. All masked is the
null: a picture from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from imagen.diffusion.augmentation import resize
from imagen.diffusion.vocabulary import ResizeMode

from .condition import Draw, Given, Target

if TYPE_CHECKING:
    from imagen.data.prepare import Want
    from unets.contract import Facts

NAME = "mask"
"""Of the network's channels, the record's field and the call's argument."""
RECTANGLES = 2


def masked(image: Tensor, mask: Tensor) -> Tensor:
    """(B, C + 1, H, W): pictures (B, C, H, W) in [-1, 1], 0 where the mask (B, 1, H, W) is 1, and the mask."""
    return torch.cat([image * (1 - mask), mask], dim=1)


def rectangles(uniform: Tensor, height: int, width: int) -> Tensor:
    """Masks (B, 1, height, width) that are the union of rectangles.

    Args:
        uniform: (B, RECTANGLES, 4) in [0, 1): where the two borders lie along each axis, in any order.
    """
    axes = []
    for places, side in ((uniform[..., :2], height), (uniform[..., 2:], width)):
        low, high = places.amin(dim=-1) * side, places.amax(dim=-1) * side
        middle = torch.arange(side, device=uniform.device) + 0.5
        axes.append((middle >= low[..., None]) & (middle < high[..., None]))
    inside = axes[0][..., :, None] & axes[1][..., None, :]
    return inside.any(dim=1, keepdim=True).to(uniform.dtype)


@dataclass(frozen=True)
class Mask:
    """The mask as a condition in training (see :mod:`imagen.conditions.condition`).

    Attributes:
        size: side of the whole picture.
        stored_masks: they come with the records, in the field ``mask``; else rectangles are drawn for every step.
    """

    size: int
    stored_masks: bool = False
    name: ClassVar[str] = NAME
    stored: ClassVar[Mapping[str, Any]] = {}

    def wants(self, want: Want) -> Want:
        """The field ``mask``, where masks are stored."""
        from imagen.data.fields import Paired

        kind = {NAME: Paired(self.size, 1, binary=True)} if self.stored_masks else {}
        return replace(want, fields={**want.fields, **kind})

    def batch(self, raw: Mapping[str, Any], image: Tensor, drop: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pictures (B, C, H, W) and their masks (B, 1, H, W), 1 where they are masked; None: to be drawn."""
        return image, raw[NAME].to(image.device, image.dtype, non_blocking=True) if self.stored_masks else None

    def inputs(self, part: tuple[Tensor, Tensor | None], draw: Draw) -> Given:
        """mask (B, C + 1, H, W); pictures whose conditions are dropped are masked all over."""
        image, mask = part
        if mask is None:
            uniform = torch.special.ndtr(draw.noise("mask", (RECTANGLES, 4)))
            mask = rectangles(uniform, *image.shape[-2:])
        mask = torch.where(draw.drop.reshape(-1, 1, 1, 1), torch.ones_like(mask), mask)
        return Given(named={NAME: masked(image, mask)})

    def needs(self, in_channels: int) -> tuple[Literal["classes", "extra_channels"], int]:
        """Channels for the picture and the mask."""
        return "extra_channels", in_channels + 1

    def sampled(self, raw: Mapping[str, Any] | None, image: Tensor | None) -> Masked:
        """Held-out pictures, masked as they are stored or in the middle; None: all is to be painted."""
        if raw is None or image is None:
            return Masked(())
        middle = image.new_tensor([[[0.25, 0.75, 0.25, 0.75]] * RECTANGLES]).expand(len(image), -1, -1)
        mask = raw[NAME].to(image) if self.stored_masks else rectangles(middle, *image.shape[-2:])
        return Masked(tuple(torch.cat([image, 1 - 2 * mask], dim=1)))


@dataclass(frozen=True)
class Masked:
    """The pictures to be painted into (see :class:`imagen.conditions.condition.Sampled`).

    Attributes:
        pictures: one for all, or one of each prompt: (C + 1, h, w) in [-1, 1], the last channel their opacity: -1 where
            they are to be painted. None: all is to be painted.
    """

    pictures: tuple[Tensor, ...]
    name: ClassVar[str] = NAME

    def __len__(self) -> int:
        return len(self.pictures) or 1

    def reads(self, network: Facts) -> bool:
        """Whether it has channels for them."""
        return NAME in network.extra_channels

    def given(self, target: Target) -> Given:
        """The pictures at the stage's size, masked, the same in every branch of guidance."""
        device = next(target.network.parameters()).device
        if not self.pictures:
            nothing = torch.zeros(1, target.network.facts.in_channels, *target.shape, device=device)
            table = masked(nothing, torch.ones_like(nothing[:, :1]))
        else:
            moved = (picture[None].to(device, non_blocking=True) for picture in self.pictures)
            table = torch.cat([_at(picture, target.shape) for picture in moved])
        return Given(rows=dict.fromkeys(target.branches, target.rows(len(self), device)), named={NAME: table})


def _at(picture: Tensor, shape: tuple[int, int]) -> Tensor:
    """(1, C + 1, h, w) with opacity -> (1, C + 1, *shape), masked where half of the area or more is transparent."""
    opacity = (picture[:, -1:].float() + 1) / 2
    mode: ResizeMode = "area" if picture.shape[-1] >= shape[-1] else "bilinear"  # no weight is negative
    weight = resize(opacity, shape, mode)
    # hidden colours do not count
    seen = resize(picture[:, :-1].float() * opacity, shape, mode) / weight.clamp(min=1e-3)
    return masked(seen, (weight <= 0.5).float())


def make_masked(value: Any, stored: Mapping[str, Any], networks: Sequence[Facts], device: torch.device) -> Masked:
    """The pictures of a call.

    Args:
        value: a list of (C + 1, h, w) in [-1, 1], or None: all is to be painted.
        stored, device: not needed.
        networks: of the stages that run.

    Raises:
        ValueError: pictures of another number of channels than the networks make.
    """
    pictures = tuple(value or ())
    for network in networks:
        wanted = network.in_channels + 1
        if pictures and NAME in network.extra_channels and len(pictures[0]) != wanted:
            raise ValueError(f"mask has {len(pictures[0])} channels; expected {wanted}, the last one opacity")
    return Masked(pictures)
