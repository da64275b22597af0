"""Intervals against published values; suites are reproducible and keep to their split."""

from __future__ import annotations

import math

import pytest

from imagen.data.shapes.language import is_heldout, parse
from imagen.evaluation.stats import Share
from imagen.evaluation.suites import CATEGORIES, shuffled, suite


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
    assert "75.0 %" in str(share)
    assert "3/4" in str(share)
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


@pytest.mark.parametrize("wrong", [{"name": "test"}, {"num": 0}, {"seed": -1}])
def test_suites_that_do_not_exist(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        suite(**{"name": "heldout", "num": 4, **wrong})  # type: ignore[arg-type]
