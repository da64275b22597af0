"""The kernel distance: its definition in three loops, another implementation, and no bias."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from imagen.scores import sets
from imagen.scores.kernel import kernel_distance, kernel_of_rows
from imagen.scores.sets import Array


def draws(count: int, width: int, shift: float = 0.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1.0, (count, width))


def by_loops(x: Array, y: Array) -> float:
    """The definition, term by term."""

    def kernel(a: Array, b: Array) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def between_others(z: Array) -> float:
        return float(np.mean([kernel(a, b) for (i, a), (j, b) in product(enumerate(z), repeat=2) if i != j]))

    return between_others(x) + between_others(y) - 2 * float(np.mean([kernel(a, b) for a, b in product(x, y)]))


@pytest.mark.parametrize(("count", "other", "width"), [(2, 2, 1), (5, 3, 4), (3, 7, 2)])
@pytest.mark.parametrize("block", [1, 6, 2**20])
def test_it_is_the_definition_whatever_the_blocks(
    count: int, other: int, width: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "BLOCK", block)
    x, y = draws(count, width), draws(other, width, shift=0.5, seed=1)
    assert kernel_distance(x, y) == pytest.approx(by_loops(x, y), rel=1e-11, abs=1e-12)


def test_two_points_by_hand() -> None:
    """Of +-1 against 0 twice: k(1, -1) = 0, k(0, 0) = 1 = k(0, 1), so 0 + 1 - 2."""
    assert kernel_distance([[1.0], [-1.0]], [[0.0], [0.0]]) == pytest.approx(-1.0)


def test_torchmetrics_finds_the_same() -> None:
    from torch import from_numpy
    from torchmetrics.image.kid import poly_mmd

    x, y = draws(80, 16), draws(80, 16, shift=0.3, seed=1)
    assert kernel_distance(x, y) == pytest.approx(float(poly_mmd(from_numpy(y), from_numpy(x))), abs=1e-12)


def test_the_mean_over_drawn_subsets_is_an_estimate_of_it() -> None:
    """What is usually reported: it differs by its own noise alone."""
    rng = np.random.default_rng(0)
    x, y = draws(300, 6), draws(300, 6, shift=0.3, seed=1)
    picks = [(rng.choice(300, 60, replace=False), rng.choice(300, 60, replace=False)) for _ in range(200)]
    found = np.array([kernel_distance(x[rows], y[others]) for rows, others in picks])
    assert abs(found.mean() - kernel_distance(x, y)) < 3 * found.std() / 200**0.5


def test_two_draws_of_one_distribution_are_0_apart_in_the_mean() -> None:
    found = np.array([kernel_distance(draws(20, 5, seed=2 * i), draws(30, 5, seed=2 * i + 1)) for i in range(400)])
    assert abs(found.mean()) < 3 * found.std() / 400**0.5
    assert (found < 0).mean() > 0.3


def test_moments_of_normal_features_give_the_expectation() -> None:
    """E k(x, y) for one dimension, x and y independent with means m and n: sums of the moments of 1, 3, 3, 1 terms."""

    def expected(m: float, n: float) -> float:
        def moments(mean: float) -> list[float]:  # of a normal of variance 1: 1, mean, mean^2 + 1, mean^3 + 3 mean
            return [1.0, mean, mean**2 + 1, mean**3 + 3 * mean]

        return sum(c * p * q for c, p, q in zip([1, 3, 3, 1], moments(m), moments(n), strict=True))

    truth = expected(0, 0) + expected(1, 1) - 2 * expected(0, 1)
    found = np.array([kernel_distance(draws(200, 1, 0.0, 2 * i), draws(200, 1, 1.0, 2 * i + 1)) for i in range(200)])
    assert abs(found.mean() - truth) < 3 * found.std() / 200**0.5


def test_some_rows_are_a_set() -> None:
    x, y = draws(20, 5), draws(15, 5, shift=0.5, seed=1)
    rows, others = np.array([3, 4, 9, 17]), np.arange(8)
    of_rows = kernel_of_rows(x, y)
    assert of_rows(rows, others) == pytest.approx(kernel_distance(x[rows], y[others]), rel=1e-11)
    assert of_rows(np.arange(20), np.arange(15)) == pytest.approx(kernel_distance(x, y), rel=1e-11)


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (np.zeros((1, 2)), np.zeros((5, 2)), "x has 1 rows; expected at least 2"),
        (np.zeros((5, 2)), np.full((5, 2), np.nan), "y has 5 rows that are not finite, the first row 0"),
        (np.zeros((5, 2)), np.zeros((5, 3)), r"x is \(5, 2\) and y is \(5, 3\); expected features of one network"),
    ],
)
def test_what_has_no_distance(x: Array, y: Array, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        kernel_distance(x, y)
    with pytest.raises(ValueError, match=r"^x has 3 rows; expected at least 4$"):
        kernel_of_rows(np.zeros((3, 2)), np.zeros((4, 2)))
