"""Checks of what people give, each in one line that names the value, what was expected and the nearest known word."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` as int if it is an integer, NumPy's too, in [low, high]. Raises: ValueError."""
    integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not integer or value < low or (high is not None and value > high):
        expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    return int(value)


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """Return ``value`` as float if it is a finite number in [low, high]. Raises: ValueError."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        expected = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} is {value!r}; expected a finite number {expected}")
    return float(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``. Raises: ValueError."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
    return str(value)


def check_device(name: str, device: str) -> str:
    """Return ``device`` if torch can compute on it. Raises: ValueError."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the last: "meta" holds no numbers
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} {device!r} is not there: {reason}; try {name} cpu") from error
    return device


def check_keys(keys: Iterable[Any], known: Sequence[str], where: str) -> None:
    """Raises ValueError for a key that is none of ``known``, naming the nearest one that is."""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")
