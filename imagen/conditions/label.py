"""A class label, by number or name, beside the text or in its place: a vector of its own, added to the time embedding.

Without a class there is one more row, the null: of pictures whose label is dropped in training, of the unconditional
branch of guidance, and of calls that pass none. Labels are dropped with the captions, so that the null means neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from .condition import Draw, Given, Target
from .options import class_number

if TYPE_CHECKING:
    from imagen.data.prepare import Want
    from unets.contract import Facts

NAME = "label"
"""Of the network's table, the record's field and the call's argument."""


@dataclass(frozen=True)
class Label:
    """The label of the pictures as a condition in training (see :mod:`imagen.conditions.condition`).

    Attributes:
        classes: how many there are.
        names: theirs, in order; empty: numbers alone.
    """

    classes: int
    names: tuple[str, ...] = ()
    name: ClassVar[str] = NAME

    @property
    def stored(self) -> Mapping[str, Any]:
        """The names of the classes."""
        return {"names": list(self.names)}

    def wants(self, want: Want) -> Want:
        """The field ``label``."""
        from imagen.data.fields import Label as Kind

        return replace(want, fields={**want.fields, NAME: Kind(self.classes, self.names)})

    def batch(self, raw: Mapping[str, Any], image: Tensor, drop: Tensor) -> Tensor:
        """(B,) int64 in [0, classes)."""
        return torch.as_tensor(raw[NAME], dtype=torch.int64).to(image.device, non_blocking=True)

    def inputs(self, part: Tensor, draw: Draw) -> Given:
        """label (B,), the dropped ones null, which is ``classes``."""
        return Given(named={NAME: part.masked_fill(draw.drop, self.classes)})

    def needs(self, in_channels: int) -> tuple[Literal["classes", "extra_channels"], int]:
        """A table of so many classes: with another number, another row would be the null."""
        return "classes", self.classes

    def sampled(self, raw: Mapping[str, Any] | None, image: Tensor | None) -> Labels:
        """Those of held-out pictures; None: no class."""
        if raw is None or image is None:
            return Labels((None,), torch.device("cpu"))
        return Labels(tuple(self.batch(raw, image, torch.zeros(len(image))).tolist()), image.device)


@dataclass(frozen=True)
class Labels:
    """The labels of a call (see :class:`imagen.conditions.condition.Sampled`).

    Attributes:
        numbers: one of all pictures, or one of each prompt; None is no class.
    """

    numbers: tuple[int | None, ...]
    device: torch.device
    name: ClassVar[str] = NAME

    def __len__(self) -> int:
        return len(self.numbers)

    def reads(self, network: Facts) -> bool:
        """Whether it has a table of classes."""
        return NAME in network.classes

    def given(self, target: Target) -> Given:
        """Rows of the table: the labels', and behind them the null of the unconditional branch."""
        null = target.network.facts.classes[NAME]
        table = [null if number is None else number for number in (*self.numbers, None)]
        rows = dict.fromkeys(target.branches, target.rows(len(self), self.device))
        if "unconditional" in rows:
            rows["unconditional"] = torch.full_like(rows["unconditional"], len(self))
        return Given(rows=rows, named={NAME: torch.tensor(table).to(self.device, non_blocking=True)})


def make_labels(value: Any, stored: Mapping[str, Any], networks: Sequence[Facts], device: torch.device) -> Labels:
    """The labels of a call.

    Args:
        value: a number, a name, a list with one (or None) for each prompt, or None for no class.
        stored: of the model: ``names`` of the classes.
        networks: of the stages that run.

    Raises:
        ValueError: no such class.
    """
    count = min((network.classes[NAME] for network in networks if NAME in network.classes), default=0)
    listed = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not listed:
        raise ValueError("label is an empty list; give a class, or one for each prompt")
    return Labels(tuple(class_number(entry, stored, count) for entry in listed), device)
