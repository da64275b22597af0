"""The distance of two sets of pictures: nothing between two draws of one kind, something where one is another kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from imagen.evaluation.distance import Array, Distance, detail, energy_distance, layout


def draws(count: int, width: int, shift: float = 0.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1.0, (count, width))


def test_one_dimension_is_the_integral_of_the_squared_difference_of_distributions() -> None:
    """2 E|x - y| - E|x - x'| - E|y - y'| is 2 times the integral of (F - G)^2 (Szekely & Rizzo 2013, theorem 1)."""
    x, y = draws(400, 1), draws(400, 1, shift=1.5, seed=1)
    grid = np.linspace(-6, 8, 20_001)
    below = [(np.sort(one[:, 0])[:, None] <= grid).mean(axis=0) for one in (x, y)]
    integral = 2 * np.trapezoid((below[0] - below[1]) ** 2, grid)
    # with itself a set is 0 apart there, and the pairs of one thing with itself are left out here
    assert energy_distance(x, y).value == pytest.approx(integral, abs=0.02)


def test_two_draws_of_one_distribution_are_as_far_apart_as_chance_makes_them() -> None:
    found = [energy_distance(draws(60, 5, seed=2 * i), draws(60, 5, seed=2 * i + 1)) for i in range(200)]
    values, errors = np.array([one.value for one in found]), np.array([one.error for one in found])
    assert abs(values.mean()) < 3 * values.std() / 200**0.5, "unbiased: below 0 as often as above"
    assert (values < 0).mean() > 0.3
    assert 0.5 < errors.mean() / values.std() < 2.5


def test_the_error_is_the_jackknife_s() -> None:
    x, y = draws(12, 3), draws(12, 3, shift=0.5, seed=1)
    left_out = np.array([energy_distance(np.delete(x, i, 0), np.delete(y, i, 0)).value for i in range(12)])
    expected = np.sqrt(11 / 12 * ((left_out - left_out.mean()) ** 2).sum())
    assert energy_distance(x, y).error == pytest.approx(expected)


def test_the_same_prompt_s_two_pictures_are_no_pair() -> None:
    """Prompts may differ as they will: rows are compared with those of other prompts alone."""
    x = draws(20, 2)
    assert energy_distance(x, x).value == pytest.approx(0, abs=1e-12)
    far = draws(20, 2) * 100
    assert energy_distance(far, far + 1e-9).value == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"features are \(2, 1\) and \(2, 1\); expected as many of each"):
        energy_distance(draws(2, 1), draws(2, 1))
    with pytest.raises(ValueError, match=r"features are \(4, 1\) and \(3, 1\)"):
        energy_distance(draws(4, 1), draws(3, 1))


def pictures(change: Callable[[Image.Image], Image.Image] = lambda one: one, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(40):
        array = np.full((64, 64, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        top, left = rng.integers(0, 40, 2)
        array[top : top + 20, left : left + 20] = rng.integers(0, 256, 3)
        made.append(change(Image.fromarray(array)))
    return made


def test_colours_change_the_layout_and_blur_the_detail() -> None:
    plain, other = pictures(), pictures(seed=1)
    darker = pictures(lambda one: one.point(lambda value: value // 2), seed=1)
    blurred = pictures(lambda one: one.filter(ImageFilter.GaussianBlur(1.5)), seed=1)
    far: dict[str, dict[str, Distance]] = {
        name: {kind.__name__: energy_distance(kind(plain), kind(those)) for kind in (layout, detail)}
        for name, those in {"other": other, "darker": darker, "blurred": blurred}.items()
    }
    chance = 4 * far["other"]["layout"].error
    assert abs(far["other"]["layout"].value) < chance
    assert far["darker"]["layout"].value > 2 * chance
    assert abs(far["blurred"]["layout"].value) < chance, "blur moves no colours"
    assert far["blurred"]["detail"].value > 4 * far["other"]["detail"].error > abs(far["other"]["detail"].value)


def test_cells_are_in_reading_order_and_counted_from_0_to_1() -> None:
    array = np.zeros((64, 64, 3), dtype=np.uint8)
    array[:8, 8:16, 1] = 255  # the second cell of the first row, green
    (cells,) = layout([Image.fromarray(array)])
    assert cells.shape == (192,)
    assert np.flatnonzero(cells).tolist() == [4]
    assert cells[4] == 1.0
    assert np.count_nonzero(detail([Image.fromarray(np.full((64, 64, 3), 77, dtype=np.uint8))])) == 0
