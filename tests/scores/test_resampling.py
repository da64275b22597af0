"""Intervals: the spread of halves is the standard error, and they hold what they should as often as they say."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from imagen.scores.frechet import Moments, frechet_distance, frechet_of_rows
from imagen.scores.kernel import kernel_distance, kernel_of_rows
from imagen.scores.manifold import manifold, manifold_of_rows
from imagen.scores.resampling import Estimate, half_samples, over_seeds
from imagen.scores.sets import Array, Rows


def draws(count: int, width: int, shift: float = 0.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1.0, (count, width))


def width_of(one: Estimate) -> float:
    return one.high - one.low


def test_an_estimate_as_text_and_as_json() -> None:
    one = Estimate(12.3456, 11.5, 13.25)
    assert str(one) == "12.35 [11.5, 13.25]"
    assert json.loads(json.dumps(one.to_json())) == {"value": 12.3456, "interval": [11.5, 13.25]}


@pytest.mark.parametrize("count", [40, 41, 400])
def test_of_a_mean_it_is_the_standard_error(count: int) -> None:
    values = np.random.default_rng(1).exponential(size=count)
    (found,) = half_samples(lambda rows: float(values[rows].mean()), [count], resamples=4000)
    error = values.std(ddof=1) / count**0.5 * (1 if count % 2 == 0 else ((count + 1) / (count - 1)) ** 0.5)
    assert found.value == pytest.approx(values.mean())
    assert (found.low + found.high) / 2 == pytest.approx(found.value)
    assert width_of(found) == pytest.approx(2 * 1.959964 * error, rel=0.05)


def test_sets_are_halved_apart_and_rows_that_go_together_are_not() -> None:
    rng = np.random.default_rng(2)
    prompts = rng.normal(0, 10, 100)
    one, other = prompts + rng.normal(size=100), prompts + rng.normal(size=100)
    (apart,) = half_samples(lambda a, b: float(one[a].mean() - other[b].mean()), [100, 100])
    (paired,) = half_samples(lambda a: float(one[a].mean() - other[a].mean()), [100])
    assert apart.value == paired.value
    assert width_of(apart) == pytest.approx(2 * 1.96 * (200 * 0.01) ** 0.5, rel=0.2)
    assert width_of(paired) == pytest.approx(2 * 1.96 * 0.02**0.5, rel=0.2)


def test_a_half_is_half_of_the_rows_once_each() -> None:
    seen: list[tuple[Rows, Rows]] = []

    def statistic(*rows: Rows) -> float:
        seen.append((rows[0], rows[1]))
        return 0.0

    assert half_samples(statistic, [9, 4], resamples=30) == (Estimate(0.0, 0.0, 0.0),)
    assert [len(one) for one in seen[0]] == [9, 4]
    assert {(len(a), len(set(a.tolist())), len(set(b.tolist()))) for a, b in seen[1:]} == {(4, 4, 2)}
    assert {int(row) for a, _ in seen[1:] for row in a} == set(range(9))


def test_draws_come_from_the_seed() -> None:
    values = draws(50, 1)[:, 0]

    def found(seed: int, level: float = 0.95) -> tuple[Estimate, ...]:
        return half_samples(lambda rows: [values[rows].mean(), values[rows].max()], [50], seed=seed, level=level)

    assert found(3) == found(3)
    assert found(3) != found(4)
    assert len(found(3)) == 2
    assert width_of(found(3, 0.99)[0]) / width_of(found(3, 0.8)[0]) == pytest.approx(2.5758 / 1.2816, rel=1e-4)


SCORES: dict[str, tuple[Callable[..., Callable[..., object]], Callable[[Array, Array], object]]] = {
    "frechet": (frechet_of_rows, lambda x, y: frechet_distance(Moments.of(x), Moments.of(y))),
    "kernel": (kernel_of_rows, kernel_distance),
    "manifold": (manifold_of_rows, lambda x, y: list(manifold(x, y).to_json().values())),
}


@pytest.mark.parametrize("name", SCORES)
def test_intervals_hold_what_as_many_pictures_give_in_the_mean(name: str) -> None:
    """95 % of them, and more where they are too wide; the draw of cases takes a few off."""
    of_rows, score = SCORES[name]
    pairs = [(draws(60, 4, seed=2 * i), draws(60, 4, shift=0.5, seed=2 * i + 1)) for i in range(120)]
    mean = np.mean([np.atleast_1d(np.asarray(score(x, y))) for x, y in pairs], axis=0)
    found = [half_samples(of_rows(x, y), [60, 60], resamples=60) for x, y in pairs]
    assert [one.value for one in found[0]] == pytest.approx(np.atleast_1d(np.asarray(score(*pairs[0]))).tolist())
    held = np.array([[one.low <= m <= one.high for one, m in zip(row, mean, strict=True)] for row in found])
    assert (held.mean(axis=0) > 0.88).all()
    spread = np.std([[one.value for one in row] for row in found], axis=0)
    widths = np.mean([[width_of(one) for one in row] for row in found], axis=0)
    assert (widths < 2 * 2 * 1.96 * spread).all(), "none is of use that holds everything"


def test_seeds_have_student_s_interval() -> None:
    from scipy.stats import ttest_1samp

    values = [1.0, 2.5, 2.0, 4.0]
    low, high = ttest_1samp(values, 0.0).confidence_interval(0.9)
    found = over_seeds(values, level=0.9)
    assert (found.value, found.low, found.high) == pytest.approx((2.375, low, high))
    assert over_seeds([3.0, 3.0]) == Estimate(3.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sizes": [5, 1]}, "a set's size is 1; expected an integer of at least 2"),
        ({"resamples": 1}, "resamples is 1; expected an integer of at least 2"),
        ({"level": 95}, "level is 95; expected a share between 0 and 1, such as 0.95"),
        ({"statistic": lambda *rows: [1.0, np.inf]}, r"the statistic is \[1.0, inf\]"),
        ({"statistic": lambda a, b: np.nan if len(a) == 2 else 1.0}, r"the statistic is \[1.0\], and of halves not"),
    ],
)
def test_what_has_no_interval(change: dict[str, object], told: str) -> None:
    given = {"statistic": lambda a, b: 1.0, "sizes": [5, 5], **change}
    with pytest.raises(ValueError, match=f"^{told}"):
        half_samples(**given)


@pytest.mark.parametrize(
    ("values", "level", "told"),
    [
        ([1.0], 0.95, r"the values of the seeds are \[1.0\]; expected at least two, all finite"),
        ([1.0, float("nan")], 0.95, r"the values of the seeds are \[1.0, nan\]"),
        ([1.0, 2.0], 1.0, "level is 1.0"),
    ],
)
def test_what_seeds_have_no_interval(values: list[float], level: float, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        over_seeds(values, level)
