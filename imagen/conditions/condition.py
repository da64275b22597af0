"""What a condition is while a network is trained: a field of the records -> a batch -> dropped or noised -> an input.

(While it samples, see :mod:`imagen.conditions.given`.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from imagen.conditions.given import Given, Sampled
    from imagen.data.prepare import Want

PartT = TypeVar("PartT")


class Draw(NamedTuple):
    """What is random about the conditions of some rows of a batch.

    Attributes:
        drop: (B,) bool, True where the picture is to be made without a condition (for classifier-free guidance).
        level: (B,) in [0, 1), of noise on a condition.
        noise: (purpose, shape of one row) -> (B, *shape), standard normal, in the dtype of the weights.
    """

    drop: Tensor
    level: Tensor
    noise: Callable[[str, Sequence[int]], Tensor]


class Condition(Protocol[PartT]):
    """A condition of a stage. ``PartT`` is what of it is the same whatever is drawn."""

    def wants(self, want: Want) -> Want:
        """`want` of each picture, and what this condition needs beside it."""

    def batch(self, raw: Mapping[str, Any], image: Tensor, drop: Tensor) -> PartT:
        """From a collated batch, on the device.

        Args:
            image: (B, C, H, W), the batch's pictures in the dtype of the weights.
            drop: (B,) bool, as in :class:`Draw`.
        """

    def inputs(self, part: PartT, draw: Draw) -> Given:
        """What the network is given, for what :meth:`batch` gave."""


class NamedCondition(Condition[PartT], Protocol[PartT]):
    """A condition beside text and low-res picture, which the network reads by its name.

    Attributes:
        name: of the network's input, of the model's entry and of the call's argument.
        stored: what the model keeps of it.
    """

    @property
    def name(self) -> str: ...

    @property
    def stored(self) -> Mapping[str, Any]: ...

    def needs(self, in_channels: int) -> tuple[Literal["classes", "extra_channels"], int]:
        """The option of a network that makes its input, and the number that stands there under the name.

        Args:
            in_channels: of the network's pictures.
        """

    def sampled(self, raw: Mapping[str, Any] | None, image: Tensor | None) -> Sampled:
        """What pictures that are drawn meanwhile are given of it: that of a collated batch; or, of None, its null."""
