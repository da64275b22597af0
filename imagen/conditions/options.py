"""What a call may pass of conditions beside text and pictures to start from, at the command line. No torch.

A further condition is a line of :data:`OPTIONS` here, a line of ``CALLED`` in :mod:`imagen.conditions.call`, and an
argument of ``ImagenPipeline.__call__``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option of sample.py, and how its word becomes what the pipeline's call takes; ``read`` raises ValueError."""

    flag: str
    metavar: str
    help: str
    read: Callable[[str], Any]


OPTIONS: dict[str, Option] = {
    "label": Option("--label", "CLASS", "class of all pictures, by number or name, where the model has classes", str),
}
"""Argument of the pipeline's call -> its option."""
