"""The section `conditions`: what the network reads beside text and low-res picture. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imagen.errors import require


@dataclass(frozen=True)
class LabelConfig:
    """A class of each picture, by number or name (imagen.conditions.label); data.fields.label says where it stands."""

    classes: int = 0
    """how many there are; 0: as many as names. The network has the same number in unet.classes.label"""
    names: tuple[str, ...] = ()
    """of the classes, in order, by which they may be stored and asked for; empty: numbers alone"""

    @property
    def count(self) -> int:
        """How many classes."""
        return self.classes or len(self.names)

    def __post_init__(self) -> None:
        require(self.count > 0, "conditions.label has no classes: give classes, or names")
        require(
            not self.names or len(self.names) == self.count,
            f"conditions.label.classes {self.classes} and {len(self.names)} names: give as many, or one of both",
        )


@dataclass(frozen=True)
class MaskConfig:
    """Painting into a part of each picture (imagen.conditions.mask). The network has unet.extra_channels.mask, one more
    than a picture has."""

    source: Literal["drawn", "stored"] = "drawn"
    """drawn: other rectangles at every step; stored: the pictures that data.fields.mask names, white where to paint"""


@dataclass(frozen=True)
class ConditionsConfig:
    """Conditions beside text and low-res picture; null is none."""

    label: LabelConfig | None = None
    """a class of each picture: classes, how many, or names, which"""
    mask: MaskConfig | None = None
    """a part of each picture that is to be painted, the rest is given: source, where the masks come from, or {}"""
