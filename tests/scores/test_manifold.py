"""Precision, recall, density, coverage: closed forms, a plain implementation, and the expectation of the paper."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from imagen.scores import sets
from imagen.scores.manifold import Manifold, manifold, manifold_of_rows, nearest
from imagen.scores.sets import Array


def draws(count: int, width: int, shift: float = 0.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1.0, (count, width))


def by_loops(x: Array, y: Array, k: int) -> Manifold:
    """The four definitions, ball by ball."""

    def radius(own: Array, i: int) -> float:
        return float(np.sort(np.linalg.norm(np.delete(own, i, 0) - own[i], axis=1))[k - 1])

    real = np.array([[np.linalg.norm(a - b) <= radius(y, j) for j, b in enumerate(y)] for a in x])
    made = np.array([[np.linalg.norm(a - b) <= radius(x, i) for i, a in enumerate(x)] for b in y])
    return Manifold(real.any(1).mean(), made.any(1).mean(), real.sum() / (k * len(x)), real.any(0).mean())


def close(found: Manifold, *expected: float) -> bool:
    return list(found.to_json().values()) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [1, 50, 2**20])
def test_it_is_the_definition_whatever_the_blocks(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "BLOCK", block)
    x, y = draws(23, 3), draws(31, 3, shift=1.5, seed=1)
    expected = by_loops(x, y, k)
    assert 0.2 < min(expected.precision, expected.recall) < 0.9
    assert close(manifold(x, y, k), *expected.to_json().values())


def test_a_set_covers_itself() -> None:
    """Closed balls: each holds its own row and its k nearest, so the density is (k + 1) / k. Far from 0 too."""
    x = draws(60, 10)
    for moved in (x, x + 1e4):
        assert close(manifold(moved, moved, k=4), 1, 1, 5 / 4, 1)


def test_far_sets_share_nothing() -> None:
    assert close(manifold(draws(30, 4), draws(20, 4, shift=100, seed=1)), 0, 0, 0, 0)


def test_half_of_the_modes() -> None:
    """All that is generated is real; half of the real is reached."""
    modes = np.concatenate([draws(40, 3), draws(40, 3, shift=100, seed=1)])
    found = manifold(modes[:40], modes)
    assert (found.precision, found.recall, found.coverage) == (1.0, 0.5, 0.5)
    turned = manifold(modes, modes[:40])
    assert (turned.precision, turned.recall, turned.coverage) == (0.5, 1.0, 1.0)


def test_density_is_above_1_where_generated_ones_cluster() -> None:
    """At the middle of a ring all generated ones lie in all balls that reach it."""
    angles = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    middle = 1e-3 * draws(10, 2)
    found = manifold(middle, ring, k=3)  # the third nearest on the ring is at sqrt(3) > 1: six balls of k = 3
    assert (found.precision, found.density, found.coverage, found.recall) == (1.0, 2.0, 1.0, 0.0)


def test_one_far_real_picture_lifts_precision_but_hardly_density() -> None:
    """Naeem et al.'s reason for density: an outlier's ball holds everything between."""
    real = np.concatenate([draws(50, 2), [[1000.0, 0.0]]])
    found = manifold(draws(50, 2, shift=300, seed=1) * [1, 0.01], real, k=5)
    assert found.precision == 1.0
    assert found.density == pytest.approx(1 / 5)
    assert found.coverage == pytest.approx(1 / 51)


@pytest.mark.parametrize("k", [1, 5])
def test_coverage_of_one_distribution_is_as_expected(k: int) -> None:
    """1 - (N-1)...(N-k) / ((N+M-1)...(N+M-k)) for N real and M generated (Naeem et al. 2020, lemma 2)."""
    real, made = 25, 20
    expected = 1 - prod(range(real - k, real)) / prod(range(real + made - k, real + made))
    found = np.array(
        [manifold(draws(made, 4, seed=2 * i), draws(real, 4, seed=2 * i + 1), k).coverage for i in range(400)]
    )
    assert abs(found.mean() - expected) < 3 * found.std() / 400**0.5


def test_density_of_one_distribution_is_1_in_the_mean() -> None:
    found = np.array([manifold(draws(20, 4, seed=2 * i), draws(25, 4, seed=2 * i + 1)).density for i in range(400)])
    assert abs(found.mean() - 1) < 3 * found.std() / 400**0.5


def test_duplicates_have_balls_of_no_size_and_lie_in_them() -> None:
    """A real set of one picture, many times, is reached by it alone, though its features are long."""
    picture = 1e3 * draws(1, 50)
    real = np.concatenate([np.repeat(picture, 8, axis=0), 1e3 * draws(8, 50, seed=1)])
    copies, others = np.repeat(picture, 6, axis=0), picture + 1.0
    found = manifold(copies, real)
    assert (found.precision, found.recall) == (1.0, 0.5)
    assert manifold(np.repeat(others, 6, axis=0), np.repeat(picture, 8, axis=0)).precision == 0.0


def test_sets_of_one_picture_alone_are_each_other_s() -> None:
    assert close(manifold(np.zeros((6, 3)), np.zeros((8, 3)), k=4), 1, 1, 8 / 4, 1)


def test_a_ball_ends_where_it_does() -> None:
    """Real ones at 0 and 1 have balls of radius 1: that about 1 ends at 2, and no ten-millionth behind it."""
    real = np.array([[0.0], [1.0]])
    for end, precision in ((2.0, 1.0), (2.0 + 1e-7, 0.0)):
        assert manifold(np.full((3, 1), end), real, k=1).precision == precision


def test_scores_do_not_change_with_rotation_shift_and_scale() -> None:
    x, y = draws(40, 5), draws(30, 5, shift=0.5, seed=1)
    turn = np.linalg.qr(draws(5, 5, seed=2))[0]
    assert manifold(3 * x @ turn + 7, 3 * y @ turn + 7) == manifold(x, y)


def test_some_rows_are_a_set() -> None:
    x, y = draws(30, 5), draws(25, 5, shift=0.5, seed=1)
    rows, others = np.array([3, 4, 9, 17, 20]), np.arange(12)
    assert close(manifold(x[rows], y[others], 2), *manifold_of_rows(x, y, 2)(rows, others))
    assert close(manifold(x, y), *manifold_of_rows(x, y)(np.arange(30), np.arange(25)))


@pytest.mark.parametrize("block", [1, 40, 2**20])
def test_nearest_is_scipy_s(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.spatial import KDTree

    monkeypatch.setattr(sets, "BLOCK", block)
    x, y = draws(17, 3), draws(40, 3, seed=1)
    distances, rows = KDTree(y).query(x)
    found = nearest(x, y)
    assert found[0].tolist() == rows.tolist()
    np.testing.assert_allclose(found[1], distances, rtol=1e-12)


def test_nearest_of_one_row_and_of_a_copy() -> None:
    y = 1e3 * draws(9, 20)
    rows, distances = nearest(y[[4]], y)
    assert (rows.tolist(), distances.tolist()) == ([4], [0.0])
    rows, distances = nearest(y, y[:1])
    assert rows.tolist() == [0] * 9
    assert distances[0] == 0.0


@pytest.mark.parametrize(
    ("x", "y", "k", "told"),
    [
        (np.zeros((5, 2)), np.zeros((9, 2)), 5, "x has 5 rows; expected at least 6"),
        (np.zeros((9, 2)), np.zeros((3, 2)), 3, "y has 3 rows; expected at least 4"),
        (np.zeros((12, 2)), np.zeros((12, 3)), 5, r"x is \(12, 2\) and y is \(12, 3\)"),
        (np.zeros((9, 2)), np.zeros((9, 2)), 0, "k is 0; expected an integer of at least 1"),
        (np.full((12, 2), np.inf), np.zeros((12, 2)), 5, "x has 12 rows that are not finite"),
    ],
)
def test_what_has_no_scores(x: Array, y: Array, k: int, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        manifold(x, y, k)
    with pytest.raises(ValueError, match=r"^x is \(2, 1\) and y is \(2, 2\)"):
        nearest(np.zeros((2, 1)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"^x has 7 rows; expected at least 8$"):
        manifold_of_rows(np.zeros((7, 2)), np.zeros((8, 2)), k=3)
