"""Precision, recall, density and coverage: how much of one set of features lies where the other does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from imagen.checks import check_int
from imagen.scores.sets import Array, Rows, check_two_sets, row_blocks

ROUNDING = 1e-12  # of a squared distance that is computed of products, beside the squared lengths of its two rows


@dataclass(frozen=True)
class Manifold:
    """How generated features lie beside real ones, by balls around each that reach to its k-th nearest of its own set.

    Attributes:
        precision: the share of generated ones inside a real one's ball, in [0, 1] (Kynkaanniemi et al. 2019,
            arXiv:1904.06991, eq. 1 and 2).
        recall: the share of real ones inside a generated one's ball, in [0, 1].
        density: in how many real ones' balls a generated one lies, over k; about 1 for one distribution, above it where
            generated ones cluster amid the real (Naeem et al. 2020, arXiv:2002.09797, eq. 3).
        coverage: the share of real ones' balls with a generated one inside, in [0, 1] (eq. 4 there).
    """

    precision: float
    recall: float
    density: float
    coverage: float

    def to_json(self) -> dict[str, float]:
        """The four numbers by name."""
        return asdict(self)


def manifold(x: Any, y: Any, k: int = 5) -> Manifold:
    """Precision, recall, density and coverage of generated features x (N, D) beside real ones y (M, D).

    Balls are closed: what lies on one, to rounding, lies inside. Other numbers of rows give other balls, so compare
    what was computed of as many.

    Args:
        k: which neighbour a ball reaches to, the row itself not counted; 5 is Naeem et al.'s, 3 Kynkaanniemi et al.'s.

    Raises:
        ValueError: as `check_features`, sets of other widths, fewer than k + 1 rows, or k below 1.
    """
    first, second = _checked(x, y, k)
    blocks = ((block, _squares(first[block], second, ROUNDING)) for block in row_blocks(len(first), len(second)))
    return _count(blocks, _radii(first, k), _radii(second, k), k)


def manifold_of_rows(x: Any, y: Any, k: int = 5) -> Callable[[Rows, Rows], tuple[float, float, float, float]]:
    """The four numbers, as in `Manifold`, of some rows of x beside some of y, at least k + 1, for `half_samples`.

    All distances are computed once and held: (N + M)^2 numbers.

    Raises:
        ValueError: as `manifold`, or fewer than 2 (k + 1) rows, of which a half has k + 1.
    """
    first, second = _checked(x, y, k, 2)
    xx, yy, xy = _squares(first, first), _squares(second, second), _squares(first, second, ROUNDING)
    np.fill_diagonal(xx, np.inf)
    np.fill_diagonal(yy, np.inf)

    def scores(rows: Rows, others: Rows) -> tuple[float, float, float, float]:
        radii = [np.partition(own[np.ix_(kept, kept)], k - 1)[:, k - 1] for own, kept in ((xx, rows), (yy, others))]
        found = _count([(slice(0, len(rows)), xy[np.ix_(rows, others)])], radii[0], radii[1], k)
        return found.precision, found.recall, found.density, found.coverage

    return scores


def nearest(x: Any, y: Any) -> tuple[Rows, Array]:
    """For each row of x (N, D) the number of the nearest row of y (M, D), and how far it is: (N,) and (N,).

    The nearest training picture of each sample, where y is of the training set: a distance of 0 is a copy. Of several
    at one distance, to rounding, any may be named.

    Raises:
        ValueError: as `check_features`, or sets of other widths.
    """
    first, second = check_two_sets(x, y)
    found = [_squares(first[block], second).argmin(axis=1) for block in row_blocks(len(first), len(second))]
    rows = np.concatenate(found)
    return rows, np.linalg.norm(first - second[rows], axis=1)


def _checked(x: Any, y: Any, k: int, times: int = 1) -> tuple[Array, Array]:
    """Both sets, about the mean of y: products of what lies around 0 lose fewer digits in its differences."""
    first, second = check_two_sets(x, y, least=times * (check_int("k", k, 1) + 1))
    middle = second.mean(axis=0)
    return first - middle, second - middle


def _squares(x: Array, y: Array, slack: float = 0.0) -> Array:
    """Squared distances (N, M), less ``slack`` of the squared lengths, and not below 0."""
    lengths = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)
    lengths *= 1 - slack
    lengths -= 2 * (x @ y.T)
    return np.asarray(lengths.clip(min=0.0, out=lengths))


def _radii(x: Array, k: int) -> Array:
    """The squared distance of every row from the k-th nearest of the others."""
    found = []
    for block in row_blocks(len(x), len(x)):
        squares = _squares(x[block], x)
        squares[np.arange(block.stop - block.start), np.arange(block.start, block.stop)] = np.inf
        found.append(np.partition(squares, k - 1)[:, k - 1])
    return np.concatenate(found)


def _count(blocks: Iterable[tuple[slice, Array]], radii_x: Array, radii_y: Array, k: int) -> Manifold:
    """The scores of squared distances (N, M), given in blocks of rows, and of squared radii (N,) and (M,)."""
    precise, inside = 0, 0
    recalled, covered = np.zeros(len(radii_y), dtype=bool), np.zeros(len(radii_y), dtype=bool)
    for rows, squares in blocks:
        in_real = squares <= radii_y
        precise += int(np.count_nonzero(in_real.any(axis=1)))
        inside += int(np.count_nonzero(in_real))
        covered |= in_real.any(axis=0)
        recalled |= (squares <= radii_x[rows, None]).any(axis=0)
    count = len(radii_x)
    return Manifold(precise / count, float(recalled.mean()), inside / (k * count), float(covered.mean()))
