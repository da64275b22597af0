"""What a network is given of its conditions while it samples: each value once, and which of it every picture sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from imagen.diffusion.guidance import Branch
from unets.contract import Network, TextContext

Value = Tensor | TextContext


class Target(NamedTuple):
    """For whom a condition of a call is prepared.

    Attributes:
        network: that is to be given it.
        branches: of guidance that it is asked for.
        shape: height and width of the pictures that the stage makes.
        pictures_per_prompt: how many follow each other of every prompt.
    """

    network: Network
    branches: tuple[Branch, ...]
    shape: tuple[int, int]
    pictures_per_prompt: int = 1


class Sampled(Protocol):
    """What a caller passed of one condition, for all pictures of the call."""

    def given(self, target: Target) -> Given | None:
        """What a network is given of it at every step of a stage; None if it reads nothing of the kind."""


class Given(NamedTuple):
    """One condition of a stage's B pictures.

    Attributes:
        values: by their names in the network's ``forward``; each has the same number of rows.
        rows: the rows that the pictures see in each branch of guidance, (B,) each; None: row i is picture i's, always.
    """

    values: Mapping[str, Value]
    rows: Mapping[Branch, Tensor] | None = None

    def stacked(self, branches: Sequence[Branch], pictures: Tensor) -> Tensor:
        """The rows that a batch sees which holds all pictures once for every branch: (len(branches) * B,)."""
        if self.rows is None:
            return pictures.repeat(len(branches))
        return torch.cat([self.rows[branch] for branch in branches])


def select(values: Mapping[str, Value], rows: Tensor) -> dict[str, Value]:
    """These rows (N,) of every value, repeats allowed."""
    return {name: v.select(rows) if isinstance(v, TextContext) else v[rows] for name, v in values.items()}
