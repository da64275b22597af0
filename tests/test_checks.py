"""What people give, at both sides of every bound: what passes and as what, and the one line for what does not."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from imagen.checks import check_choice, check_int, check_keys, check_number


@pytest.mark.parametrize(
    ("value", "low", "high"), [(3, 3, 5), (5, 3, 5), (10**9, 3, None), (-2, -2, None), (np.int64(4), 3, 5)]
)
def test_an_integer_up_to_and_with_both_bounds(value: Any, low: int, high: int | None) -> None:
    checked = check_int("steps", value, low, high)
    assert checked == value
    assert type(checked) is int


@pytest.mark.parametrize("value", [2, 6, True, 4.0, "4", None, math.nan])
def test_what_is_no_integer_within_bounds_is_named_with_them(value: Any) -> None:
    with pytest.raises(ValueError, match="^steps is .*; expected an integer from 3 to 5$") as told:
        check_int("steps", value, 3, 5)
    assert repr(value) in str(told.value)


def test_an_integer_may_have_no_upper_bound_and_zero_is_one() -> None:
    with pytest.raises(ValueError, match="^steps is 0; expected an integer of at least 1$"):
        check_int("steps", 0, 1)
    with pytest.raises(ValueError, match="^steps is 1; expected an integer from -1 to 0$"):
        check_int("steps", 1, -1, 0)
    with pytest.raises(ValueError, match="^steps is True; expected an integer of at least 0$"):
        check_int("steps", True, 0)


@pytest.mark.parametrize("value", [0.5, 2, 1.25, np.float32(1.5), np.int64(1), Fraction(3, 2)])
def test_a_number_up_to_and_with_both_bounds(value: Any) -> None:
    checked = check_number("scale", value, 0.5, 2)
    assert checked == value
    assert type(checked) is float


@pytest.mark.parametrize("value", [0.49, 2.01, True, "1", None, math.nan, math.inf, -math.inf, 1j])
def test_what_is_no_number_within_bounds_is_named_with_them(value: Any) -> None:
    with pytest.raises(ValueError, match="^scale is .*; expected a finite number from 0.5 to 2$") as told:
        check_number("scale", value, 0.5, 2.0)
    assert repr(value) in str(told.value)


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, False])
def test_a_number_without_an_upper_bound_is_finite_all_the_same(value: Any) -> None:
    assert check_number("scale", 1e30, 0.0) == 1e30
    with pytest.raises(ValueError, match="^scale is .*; expected a finite number of at least 0$"):
        check_number("scale", value, 0.0)


def test_a_word_is_one_of_the_choices() -> None:
    assert [check_choice("mode", word, ("area", "nearest")) for word in ("area", "nearest")] == ["area", "nearest"]
    for wrong in ("Area", "", None, 3):
        with pytest.raises(ValueError, match=f"^mode is {wrong!r}; expected one of area, nearest$"):
            check_choice("mode", wrong, ("area", "nearest"))


def test_every_key_is_known_or_told_with_the_nearest() -> None:
    check_keys([], ("size", "crop"), "data")
    check_keys(["crop", "size"], ("size", "crop"), "data")
    with pytest.raises(ValueError, match="^data: unknown key 'sise'; did you mean 'size'\\?$"):
        check_keys(["crop", "sise"], ("size", "crop"), "data")
    with pytest.raises(ValueError, match="^data: unknown key 7; known: size, crop$"):
        check_keys(["size", 7], ("size", "crop"), "data")
