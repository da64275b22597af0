"""The Frechet distance of two sets of features: the FID, where they are Inception's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen.scores.sets import Array, Rows, check_features, check_two_sets


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a set of features, which is all that the Frechet distance knows of it.

    Attributes:
        mean: (D,).
        cov: (D, D), of the sample: divided by ``count - 1``.
        count: how many features they are of; 0 where whoever published them does not say.

    Raises:
        ValueError: other shapes, values that are not finite, or a ``cov`` that is not symmetric.
    """

    mean: Array
    cov: Array
    count: int

    def __post_init__(self) -> None:
        width = self.mean.size
        if self.mean.shape != (width,) or not width or self.cov.shape != (width, width):
            raise ValueError(f"moments are {self.mean.shape} and {self.cov.shape}; expected (D,) and (D, D)")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.cov).all()):
            raise ValueError("moments hold values that are not finite; compute them again from the features")
        if np.abs(self.cov - self.cov.T).max() > 1e-6 * np.abs(self.cov).max():
            raise ValueError("cov is not symmetric, and so is no covariance; compute it again from the features")

    @classmethod
    def of(cls, features: Any) -> Moments:
        """Those of features (N, D), in float64. Raises: ValueError, as `check_features`, for fewer than two rows."""
        return _moments(check_features("features", features, least=2))


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Frechet distance of the normal distributions with these moments, at least 0.

    |mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Dowson & Landau 1982; Heusel et al. 2017, arXiv:1706.08500,
    eq. 6). Of finite sets it is too large in the mean, by about a constant over their size: compare what was computed
    of as many pictures (`imagen.scores.resampling` has its intervals).

    Only the trace of the square root is needed. With S = L L^T it is the sum of the singular values of L_a^T L_b, for
    any factors L; those here are of the numerical rank. `scipy.linalg.sqrtm` of S_a S_b, not symmetric and with
    fewer features than dimensions singular, is complex there and adds up the square roots of rounding errors: between
    sets of 100 in 400 dimensions it was off by 2e-5, this by 4e-13.

    Raises:
        ValueError: moments of other widths, or a ``cov`` with eigenvalues below 0.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments are of {len(a.mean)} and {len(b.mean)} dimensions; expected features of one network")
    shared = np.linalg.svd(_factor(a.cov).T @ _factor(b.cov), compute_uv=False).sum()
    distance = ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov) + np.trace(b.cov) - 2 * shared
    return max(float(distance), 0.0)  # below 0 by rounding alone


def frechet_of_rows(x: Any, y: Any) -> Callable[[Rows, Rows], float]:
    """The distance of some rows of x (N, D) from some of y (M, D), at least two of each, for `half_samples`.

    Raises:
        ValueError: as `check_features`, fewer than four rows, of which a half has two, or sets of other widths.
    """
    first, second = check_two_sets(x, y, least=4)
    return lambda rows, others: frechet_distance(_moments(first[rows]), _moments(second[others]))


def _moments(features: Array) -> Moments:
    mean = features.mean(axis=0)
    centred = features - mean
    return Moments(mean, centred.T @ centred / (len(features) - 1), len(features))


def _factor(cov: Array) -> Array:
    """L (D, R) with ``cov`` = L L^T, of the numerical rank R: the square root of what rounding leaves in the null space
    would not be small.
    """
    values, vectors = np.linalg.eigh(cov)
    largest = np.abs(values).max()
    if values[0] < -1e-5 * largest:  # further than by rounding, in float32 too
        raise ValueError(f"cov has the eigenvalue {values[0]:.3g}, and so is no covariance; compute it again")
    kept = values > len(values) * np.finfo(np.float64).eps * largest
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))
