"""The Frechet distance: closed forms, other implementations, and sets of fewer pictures than dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from imagen.scores.frechet import Moments, frechet_distance, frechet_of_rows
from imagen.scores.sets import Array


def draws(count: int, width: int, shift: float = 0.0, seed: int = 0) -> Array:
    """Correlated features of unequal scales."""
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1.0, (count, width)) @ (rng.normal(size=(width, width)) + 2 * np.eye(width))


def rotation(width: int, seed: int = 7) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def distance(x: Array, y: Array) -> float:
    return frechet_distance(Moments.of(x), Moments.of(y))


def test_moments_are_those_of_numpy() -> None:
    x = draws(30, 4, shift=3.0)
    found = Moments.of(x.astype(np.float32))
    assert found.count == 30
    assert found.mean.dtype == found.cov.dtype == np.float64
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.cov, np.cov(x, rowvar=False), rtol=1e-5)


def test_one_dimension_is_the_distance_of_means_and_of_deviations() -> None:
    a, b = Moments(np.array([1.0]), np.array([[4.0]]), 9), Moments(np.array([-2.0]), np.array([[0.25]]), 9)
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + (2.0 - 0.5) ** 2, abs=1e-12)


@pytest.mark.parametrize("turned", [False, True])
def test_commuting_covariances_differ_by_their_square_roots(turned: bool) -> None:
    rng = np.random.default_rng(0)
    scales, others = rng.uniform(0, 3, 20), rng.uniform(0, 3, 20)
    scales[3] = others[3] = others[4] = 0.0
    means = rng.normal(size=(2, 20))
    turn = rotation(20) if turned else np.eye(20)
    a = Moments(means[0], turn * scales**2 @ turn.T, 0)
    b = Moments(means[1], turn * others**2 @ turn.T, 0)
    expected = ((means[0] - means[1]) ** 2).sum() + ((scales - others) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-9)


def test_others_find_the_same_where_covariances_have_full_rank() -> None:
    from scipy.linalg import sqrtm
    from torch import from_numpy
    from torchmetrics.image.fid import _compute_fid

    a, b = Moments.of(draws(300, 12)), Moments.of(draws(200, 12, shift=0.5, seed=1))
    found = frechet_distance(a, b)
    root = sqrtm(a.cov @ b.cov).real
    assert found == pytest.approx(((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov - 2 * root), abs=1e-9)
    theirs = _compute_fid(*(from_numpy(one) for one in (a.mean, a.cov, b.mean, b.cov)))
    assert found == pytest.approx(float(theirs), abs=1e-9)


def test_fewer_pictures_than_dimensions() -> None:
    """In the space that both sets span, of full rank, the distance is the same; a set is 0 from itself to rounding."""
    x, y = draws(12, 60), draws(9, 60, shift=0.5, seed=1)
    span = np.linalg.qr(np.concatenate([x, y]).T)[0]
    assert distance(x, y) == pytest.approx(distance(x @ span, y @ span), rel=1e-12)
    centred = [(one - one.mean(axis=0)) / np.sqrt(len(one) - 1) for one in (x, y)]
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    apart = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + sum((one**2).sum() for one in centred) - 2 * shared
    assert distance(x, y) == pytest.approx(apart, rel=1e-12)
    assert 0 <= distance(x, x) < 1e-13 * (x**2).sum()


def test_sets_in_orthogonal_spaces_share_nothing() -> None:
    """Where the product of the covariances is 0, rounding has no square root that is added up over dimensions."""
    turn = rotation(100)
    scales = np.linspace(1, 2, 50)
    a = Moments(np.zeros(100), turn[:, :50] * scales @ turn[:, :50].T, 0)
    b = Moments(np.zeros(100), turn[:, 50:] * scales @ turn[:, 50:].T, 0)
    assert frechet_distance(a, b) == pytest.approx(2 * scales.sum(), rel=1e-13)


def test_the_distance_is_symmetric_and_does_not_change_with_rotation_and_shift() -> None:
    x, y = draws(50, 8), draws(40, 8, shift=1.0, seed=1)
    turn, shift = rotation(8), np.arange(8.0)
    found = distance(x, y)
    assert found > 1
    assert distance(y, x) == pytest.approx(found, rel=1e-12)
    assert distance(x @ turn + shift, y @ turn + shift) == pytest.approx(found, rel=1e-10)
    assert distance(3 * x, 3 * y) == pytest.approx(9 * found, rel=1e-12)


def test_constant_features_are_as_far_apart_as_their_means() -> None:
    assert distance(np.zeros((3, 4)), np.ones((2, 4))) == pytest.approx(4.0)
    assert distance(np.zeros((3, 4)), np.zeros((2, 4))) == 0.0


def test_some_rows_are_a_set() -> None:
    x, y = draws(20, 5), draws(15, 5, seed=1)
    rows, others = np.array([3, 4, 9, 17]), np.arange(8)
    assert frechet_of_rows(x, y)(rows, others) == pytest.approx(distance(x[rows], y[others]), rel=1e-12)
    with pytest.raises(ValueError, match=r"^y has 3 rows; expected at least 4$"):
        frechet_of_rows(x, y[:3])


NAN = np.array([[0.0, 1.0], [np.nan, 1.0], [0.0, np.inf]])


@pytest.mark.parametrize(
    ("features", "told"),
    [
        (np.zeros(3), r"features is float64 \(3,\); expected numbers \(N, D\), a row for each picture"),
        (np.zeros((3, 0)), r"features is float64 \(3, 0\); expected numbers"),
        ([["a"]], r"features is <U1 \(1, 1\); expected numbers"),
        (np.zeros((1, 3)), "features has 1 rows; expected at least 2"),
        (NAN, "features has 2 rows that are not finite, the first row 1"),
    ],
)
def test_what_is_no_set_of_features(features: object, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        Moments.of(features)


@pytest.mark.parametrize(
    ("mean", "cov", "told"),
    [
        (np.zeros(2), np.eye(3), r"moments are \(2,\) and \(3, 3\); expected \(D,\) and \(D, D\)"),
        (np.zeros((1, 2)), np.eye(2), r"moments are \(1, 2\) and \(2, 2\)"),
        (np.zeros(0), np.zeros((0, 0)), r"moments are \(0,\) and \(0, 0\)"),
        (np.array([0.0, np.nan]), np.eye(2), "moments hold values that are not finite"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.4, 1.0]]), "cov is not symmetric"),
    ],
)
def test_what_are_no_moments(mean: Array, cov: Array, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        Moments(mean, cov, 5)


def test_moments_that_have_no_distance() -> None:
    plain = Moments(np.zeros(2), np.eye(2), 5)
    with pytest.raises(ValueError, match="^moments are of 2 and 3 dimensions; expected features of one network"):
        frechet_distance(plain, Moments(np.zeros(3), np.eye(3), 5))
    with pytest.raises(ValueError, match="^cov has the eigenvalue -1, and so is no covariance"):
        frechet_distance(plain, Moments(np.zeros(2), np.diag([1.0, -1.0]), 5))
    with pytest.raises(ValueError, match=r"^x is \(5, 2\) and y is \(5, 3\); expected features of one network"):
        frechet_of_rows(np.zeros((5, 2)), np.zeros((5, 3)))
