"""What a network is given of its conditions while it samples: each value once, and which of it every picture sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from imagen.diffusion.guidance import Branch
from unets.contract import Facts, TextContext
from unets.network import Network

Value = Tensor | TextContext


class Target(NamedTuple):
    """For whom a condition of a call is prepared.

    Attributes:
        network: that is to be given it.
        branches: of guidance that it is asked for.
        shape: height and width of the pictures that the stage makes.
        pictures: B, how many the call makes.
        pictures_per_prompt: how many follow each other of every prompt.
    """

    network: Network
    branches: tuple[Branch, ...]
    shape: tuple[int, int]
    pictures: int
    pictures_per_prompt: int = 1


class Sampled(Protocol):
    """What a caller passed of one condition, for all pictures of the call.

    Attributes:
        name: of the argument.
        number: for how many prompts it was passed; 1 is for all.
    """

    @property
    def name(self) -> str: ...

    @property
    def number(self) -> int: ...

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
