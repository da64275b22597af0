"""What a condition is while a network is trained: a field of the records -> a batch -> dropped or noised -> an input.

And while it samples: what a caller passed -> each value once, and which of it every picture sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from imagen.diffusion.guidance import Branch
from unets.contract import Facts, TextContext
from unets.network import Network

if TYPE_CHECKING:
    from imagen.data.prepare import Want

PartT = TypeVar("PartT")
Value = Tensor | TextContext


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

    name: ClassVar[str]

    @property
    def stored(self) -> Mapping[str, Any]: ...

    def needs(self, in_channels: int) -> tuple[Literal["classes", "extra_channels"], int]:
        """The option of a network that makes its input, and the number that stands there under the name.

        Args:
            in_channels: of the network's pictures.
        """

    def sampled(self, raw: Mapping[str, Any] | None, image: Tensor | None) -> Sampled:
        """What pictures that are drawn meanwhile are given of it: that of a collated batch; or, of None, its null."""


class Target(NamedTuple):
    """For whom a condition of a call is prepared.

    Attributes:
        network: that is to be given it.
        branches: of guidance that it is asked for.
        shape: height and width of the pictures that the stage makes.
        pictures: B, how many the call makes: the same number of each prompt, one prompt after another.
    """

    network: Network
    branches: tuple[Branch, ...]
    shape: tuple[int, int]
    pictures: int

    def rows(self, count: int, device: torch.device) -> Tensor:
        """(B,): of ``count`` values, one for all pictures or one of each prompt, the row that every picture sees."""
        return torch.arange(count, device=device).repeat_interleave(self.pictures // count)


class Sampled(Protocol):
    """What a caller passed of one condition, for all pictures of the call.

    Attributes:
        name: of the argument.
    """

    name: ClassVar[str]

    def __len__(self) -> int:
        """For how many prompts it was passed; 1 is for all."""

    def reads(self, network: Facts) -> bool:
        """Whether a network has an input for it."""

    def given(self, target: Target) -> Given:
        """What a network that reads it is given of it at every step of a stage."""


class Given(NamedTuple):
    """One condition of a stage's B pictures.

    Attributes:
        values: by their names in the network's ``forward``; each has the same number of rows.
        rows: the rows that the pictures see in each branch of guidance, (B,) each; None: row i is picture i's, always.
        named: entries of forward's ``conditions``, rows alike.
    """

    values: Mapping[str, Value] = {}
    rows: Mapping[Branch, Tensor] | None = None
    named: Mapping[str, Tensor] = {}

    def stacked(self, branches: Sequence[Branch], pictures: Tensor) -> Tensor:
        """The rows that a batch sees which holds all pictures once for every branch: (len(branches) * B,)."""
        if self.rows is None:
            return pictures.repeat(len(branches))
        return torch.cat([self.rows[branch] for branch in branches])

    def select(self, rows: Tensor) -> Given:
        """These rows (N,) of everything, repeats allowed."""
        values = {name: v.select(rows) if isinstance(v, TextContext) else v[rows] for name, v in self.values.items()}
        return Given(values, None, {name: value[rows] for name, value in self.named.items()})


def arguments(given: Sequence[Given]) -> dict[str, Any]:
    """Arguments of a network's ``forward``."""
    values = {name: value for one in given for name, value in one.values.items()}
    named = {name: value for one in given for name, value in one.named.items()}
    return {**values, "conditions": named} if named else values
