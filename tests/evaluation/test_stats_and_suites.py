"""Intervals against published values; suites are reproducible and keep to their split."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from imagen.data.shapes.language import is_heldout, parse
from imagen.evaluation.stats import Share, paired_difference
from imagen.evaluation.suites import CATEGORIES, SuiteName, shuffled, suite


def test_wilson_against_known_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3
    assert Share(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Share(15, 148).interval == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert Share(0, 20).interval == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert Share(29, 29).interval == pytest.approx((0.8830, 1.0), abs=5e-5)


def test_wilson_is_the_inverse_of_the_score_test() -> None:
    for successes, trials in ((3, 7), (40, 50), (180, 200)):
        for bound in Share(successes, trials).interval:
            z = (successes / trials - bound) / math.sqrt(bound * (1 - bound) / trials)
            assert abs(z) == pytest.approx(1.959964, rel=1e-6)


def test_shares_say_what_they_count() -> None:
    share = Share.of([True, True, False, True])
    assert (share.successes, share.trials, share.value) == (3, 4, 0.75)
    assert str(Share(81, 263)) == " 30.8 % [25.5,  36.6]  81/263"
    assert str(Share(29, 29)) == "100.0 % [88.3, 100.0]  29/29"
    assert Share(29, 29).to_json() == {
        "share": 1.0, "interval": [pytest.approx(0.883, abs=5e-4), 1.0], "successes": 29, "trials": 29
    }  # fmt: skip
    empty = Share.of([])
    assert math.isnan(empty.value)
    assert empty.interval == (0.0, 1.0)
    assert empty.to_json()["share"] is None
    assert str(empty) == "-"


def test_a_suite_is_even_and_reproducible_and_its_captions_say_its_facts() -> None:
    prompts = suite("heldout", 200)
    assert prompts == suite("heldout", 200)
    assert [p.seed for p in prompts] == list(range(200))
    assert {c: sum(p.category == c for p in prompts) for c in CATEGORIES} == dict.fromkeys(CATEGORIES, 50)
    assert len({p.text for p in prompts}) > 180
    for prompt in prompts:
        said = parse(prompt.text)
        assert set(said.things) == set(prompt.facts.things)
        assert (said.count, said.background) == (prompt.facts.count, prompt.facts.background)
    assert suite("heldout", 3, seed=7)[0].seed == 7


def test_every_heldout_prompt_holds_a_heldout_combination_and_no_other_split_does() -> None:
    assert all(is_heldout(prompt.facts) for prompt in suite("heldout", 100))
    for name in ("train", "tune"):
        assert not any(is_heldout(prompt.facts) for prompt in suite(name, 100))  # type: ignore[arg-type]


def test_tune_uses_seeds_and_prompts_of_its_own() -> None:
    tune = suite("tune", 100)
    for name in ("heldout", "train"):
        other = suite(name, 200)  # type: ignore[arg-type]
        assert not {p.seed for p in tune} & {p.seed for p in other}
        assert [p.text for p in tune] != [p.text for p in other[:100]]


def test_shuffling_keeps_the_words_and_the_facts() -> None:
    for prompt in suite("heldout", 12):
        mixed = shuffled(prompt)
        assert mixed.text != prompt.text
        assert sorted(mixed.text.split()) == sorted(prompt.text.split())
        assert (mixed.facts, mixed.seed) == (prompt.facts, prompt.seed)


@pytest.mark.parametrize("name", ["heldout", "train", "tune"])
def test_a_later_seed_goes_on_where_an_earlier_one_left_off(name: SuiteName) -> None:
    first = 1_000_000 if name == "tune" else 0
    whole = suite(name, 12)
    assert [p.seed for p in whole] == list(range(first, first + 12))
    assert [p.category for p in whole] == [*CATEGORIES] * 3
    assert suite(name, 8, 4) == whole[4:]
    assert suite(name, 1) == whole[:1]
    some = suite(name, 5, 2, ("counting", "single"))
    assert [p.category for p in some] == ["counting", "single", "counting", "single", "counting"]
    assert [p.seed for p in some] == list(range(first + 2, first + 7))


def test_words_are_shuffled_in_a_way_of_each_prompt_s_own() -> None:
    prompts = [replace(suite("heldout", 1)[0], seed=seed) for seed in range(8)]
    assert [shuffled(p) for p in prompts] == [shuffled(p) for p in prompts]
    assert len({shuffled(p).text for p in prompts}) > 4
    for text in ("red", "red red"):  # nothing to exchange
        assert shuffled(replace(prompts[0], text=text)).text == text


@pytest.mark.parametrize(
    ("wrong", "told"), [({"name": "test"}, "split is 'test'"), ({"num": 0}, "num is 0 "), ({"seed": -1}, "seed is -1;")]
)
def test_suites_that_do_not_exist(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=f"{told}.* expected"):
        suite(**{"name": "heldout", "num": 4, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [(40, 30, 8, 2), (90, 5, 1, 4), (3, 1, 6, 50), (10, 0, 0, 10)])
def test_the_interval_of_a_paired_difference_is_newcombe_s(counts: tuple[int, int, int, int]) -> None:
    """Newcombe 1998, method 10, from Wilson's limits as roots of (p - x)^2 = z^2 x (1 - x) / n."""
    both, spoiled, mended, neither = counts
    number, z = sum(counts), 1.959964

    def wilson(share: float) -> tuple[float, float]:
        ratio = z * z / number
        low, high = sorted(np.roots([1 + ratio, -2 * share - ratio, share * share]).real)
        return low, high

    p, q = (both + spoiled) / number, (both + mended) / number
    (p_low, p_high), (q_low, q_high) = wilson(p), wilson(q)
    spread = math.sqrt(p * (1 - p) * q * (1 - q))
    above_chance = both / number - p * q
    phi = (above_chance if above_chance < 0 else max(above_chance - 0.5 / number, 0.0)) / spread
    below = (q - q_low) ** 2 - 2 * phi * (q - q_low) * (p_high - p) + (p_high - p) ** 2
    above = (q_high - q) ** 2 - 2 * phi * (q_high - q) * (p - p_low) + (p - p_low) ** 2
    before = [True] * (both + spoiled) + [False] * (mended + neither)
    after = [True] * both + [False] * spoiled + [True] * mended + [False] * neither
    low, high, *changed = paired_difference(before, after)
    assert changed == [mended, spoiled]
    assert low == pytest.approx(q - p - math.sqrt(max(below, 0.0)), abs=1e-4)
    assert high == pytest.approx(q - p + math.sqrt(max(above, 0.0)), abs=1e-4)
