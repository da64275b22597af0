"""The kernel distance of two sets of features: the KID, where they are Inception's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from imagen.scores.sets import Array, Rows, check_two_sets, row_blocks


def kernel_distance(x: Any, y: Any) -> float:
    """The squared maximum mean discrepancy of features x (N, D) and y (M, D), without bias.

    The means of k(x, x') and of k(y, y') over pairs of different rows, less twice that of k(x, y), with
    k(a, b) = (a.b / D + 1)^3 (Binkowski et al. 2018, arXiv:1801.01401, section 4; Gretton et al. 2012, eq. 3): 0 in the
    mean for two draws of one distribution, however few, so it may be negative.

    It is computed of all rows at once. What other programs report as KID, the mean over 100 drawn subsets of 1000, is
    an estimate of the same number with the noise of the drawing added. Usually reported times 1000.

    Raises:
        ValueError: as `check_features`, fewer than two rows, or sets of other widths.
    """
    first, second = check_two_sets(x, y, least=2)
    count, other = len(first), len(second)
    same_x = (_total(first, first) - _diagonal(first).sum()) / (count * (count - 1))
    same_y = (_total(second, second) - _diagonal(second).sum()) / (other * (other - 1))
    return float(same_x + same_y - 2 * _total(first, second) / (count * other))


def kernel_of_rows(x: Any, y: Any) -> Callable[[Rows, Rows], float]:
    """The distance of some rows of x (N, D) from some of y (M, D), at least two of each, for `half_samples`.

    The kernel of all pairs is computed once and held: (N + M)^2 numbers.

    Raises:
        ValueError: as `check_features`, fewer than four rows, of which a half has two, or sets of other widths.
    """
    first, second = check_two_sets(x, y, least=4)
    xx, yy, xy = _kernel(first, first), _kernel(second, second), _kernel(first, second)
    np.fill_diagonal(xx, 0.0)
    np.fill_diagonal(yy, 0.0)

    def distance(rows: Rows, others: Rows) -> float:
        chosen, other = np.zeros(len(xx)), np.zeros(len(yy))
        chosen[rows], other[others] = 1.0, 1.0  # products with these are faster than sums of picked rows and columns
        count, many = len(rows), len(others)
        same = chosen @ xx @ chosen / (count * (count - 1)) + other @ yy @ other / (many * (many - 1))
        return float(same - 2 * (chosen @ xy @ other) / (count * many))

    return distance


def _kernel(x: Array, y: Array) -> Array:
    values = x @ y.T / x.shape[1] + 1
    return np.asarray(values * values * values)


def _diagonal(x: Array) -> Array:
    """k(a, a) of every row."""
    return np.asarray(((x * x).mean(axis=1) + 1) ** 3)


def _total(x: Array, y: Array) -> float:
    """The sum of the kernel over all pairs."""
    return float(sum(_kernel(x[block], y).sum() for block in row_blocks(len(x), len(y))))
