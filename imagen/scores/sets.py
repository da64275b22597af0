"""Sets of features (N, D): what every score checks of them, once, and how it walks through them in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.intp]  # which rows of a set, by their numbers

BLOCK = 2**23  # numbers in a block of a matrix of pairs: 64 MiB


def check_features(name: str, values: Any, least: int = 1) -> Array:
    """Features as float64 (N, D), a view where they are already.

    Raises:
        ValueError: not (N, D) with D of at least 1, fewer than ``least`` rows, or values that are no finite numbers.
    """
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiu":
        raise ValueError(f"{name} is {array.dtype} {array.shape}; expected numbers (N, D), a row for each picture")
    if len(array) < least:
        raise ValueError(f"{name} has {len(array)} rows; expected at least {least}")
    array = array.astype(np.float64, copy=False)
    wrong = ~np.isfinite(array).all(axis=1)
    if wrong.any():
        raise ValueError(f"{name} has {wrong.sum()} rows that are not finite, the first row {wrong.argmax()}")
    return array


def check_two_sets(x: Any, y: Any, least: int = 1) -> tuple[Array, Array]:
    """Two sets of features of one width. Raises: ValueError, as `check_features`, or where the widths differ."""
    first, second = check_features("x", x, least), check_features("y", y, least)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"x is {first.shape} and y is {second.shape}; expected features of one network, of one width")
    return first, second


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """The rows of a matrix (rows, columns) in blocks of about `BLOCK` numbers, at least a row each."""
    step = max(1, BLOCK // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
