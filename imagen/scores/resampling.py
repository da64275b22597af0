"""Intervals of scores: over halves of the pictures, and over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from imagen.checks import check_int


@dataclass(frozen=True)
class Estimate:
    """A number and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for a JSON file."""
        return {"value": self.value, "interval": [self.low, self.high]}


def half_samples(
    statistic: Callable[..., float | Sequence[float]],
    sizes: Sequence[int],
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Estimate, ...]:
    """What a statistic is of whole sets, with intervals: how far another draw of as many pictures would bring it.

    The standard error is the spread of the statistic over random halves of each set, drawn without replacement: the
    mean of a half varies about that of its set just as that of the set does about the truth, by s^2 / n (Shao & Wu
    1989). The interval is normal about the value, so it may reach beyond the range of a share.

    Why no bootstrap: it draws pictures twice, and a picture beside its copy is no pair, no neighbour and no direction
    of a covariance. Measured on 17 kinds of normal sets (100 to 400 rows, 8 to 64 dimensions; 200 pairs of each) for
    all scores here, 95 % of the intervals should hold the statistic's mean: 0 to 95 % of the bootstrap's percentiles
    did, 91 to 100 % of these. It is the interval of the statistic of as many pictures: the bias that the Frechet
    distance has for their number is not in it, and where that is most of the value, it is up to twice too wide.

    Args:
        statistic: given one array of row numbers for each set, a number or several, such as `frechet_of_rows(x, y)`.
            Rows that go together, as the pictures of two models for one prompt, are one set of prompts here, and the
            statistic takes both models' with the same numbers.
        sizes: of the sets; at least 2.
        resamples: how many halves are drawn; the standard error is known to 5 % of itself at 200.
        seed: of the draws.
        level: of the interval, in (0, 1).

    Returns:
        an estimate for each number of the statistic.

    Raises:
        ValueError: a set of fewer than 2, fewer than 2 resamples, a level outside (0, 1), or a statistic that is not
            finite.
    """
    sizes = [check_int("a set's size", size, 2) for size in sizes]
    check_int("resamples", resamples, 2)
    _check_level(level)
    rng = np.random.default_rng(seed)
    values = np.atleast_1d(np.asarray(statistic(*(np.arange(size) for size in sizes)), dtype=np.float64))
    halves = [statistic(*(rng.permutation(size)[: size // 2] for size in sizes)) for _ in range(resamples)]
    spread = np.asarray(halves, dtype=np.float64).reshape(resamples, len(values))
    if not (np.isfinite(values).all() and np.isfinite(spread).all()):
        raise ValueError(f"the statistic is {values.tolist()}, and of halves not finite either: it has no interval")
    reach = NormalDist().inv_cdf(0.5 + level / 2) * spread.std(axis=0, ddof=1)
    return tuple(Estimate(float(v), float(v - r), float(v + r)) for v, r in zip(values, reach, strict=True))


def over_seeds(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The mean of a number over seeds, and Student's interval of it: whole runs, of which each seed is one.

    Raises:
        ValueError: fewer than two values, one that is not finite, or a level outside (0, 1).
    """
    from scipy.stats import t

    _check_level(level)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"the values of the seeds are {list(values)}; expected at least two, all finite")
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(t.ppf(0.5 + level / 2, len(values) - 1)) * error
    return Estimate(mean, mean - reach, mean + reach)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; expected a share between 0 and 1, such as 0.95")
