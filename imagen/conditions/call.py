"""From what a call passes to the conditions of its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from imagen.conditions.condition import Sampled
from imagen.conditions.label import make_labels
from imagen.conditions.mask import make_masked
from imagen.conditions.options import unread
from unets.contract import Facts

Called = Callable[[Any, Mapping[str, Any], Sequence[Facts], torch.device], Sampled]
"""(the argument, what the model stores of it, networks of the stages that run, device) -> the condition.

The argument is None where it was not passed, and then networks that read one are given its null. Raises ValueError for
a value that is none, naming it and what was expected.
"""
CALLED: dict[str, Called] = {"label": make_labels, "mask": make_masked}
"""Argument of the pipeline's call -> what makes a condition of it."""


def called(
    values: Mapping[str, Any], stored: Mapping[str, Any], networks: Sequence[Facts], device: torch.device
) -> list[Sampled]:
    """The conditions that the networks of a call read, in order.

    Args:
        values: by argument of :data:`CALLED`; None is not passed.
        stored: what the model stores of each.
        networks: of the stages that run.

    Raises:
        ValueError: a value that is none, or that no network reads.
    """
    made = []
    for name, make in CALLED.items():
        condition = make(values[name], stored.get(name) or {}, networks, device)
        if any(condition.reads(network) for network in networks):
            made.append(condition)
        elif values[name] is not None:
            raise unread(name)
    return made
