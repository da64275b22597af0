"""The caption language: what is said word by word, how often what is said, and what is none of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from imagen.data.shapes.language import (
    BACKGROUNDS,
    COLORS,
    HELDOUT_PAIRS,
    INVERSE,
    PATTERNS,
    SHAPES,
    Facts,
    Thing,
    allowed_backgrounds,
    caption,
    choice,
    is_heldout,
    parse,
    sample_facts,
)

RED, ORANGE = Thing("red", "circle"), Thing("orange", "hexagon", "checkered", "large")
SAID = {
    "a red circle": Facts((RED,)),
    "an orange cross": Facts((Thing("orange", "cross"),)),
    "a striped red circle": Facts((Thing("red", "circle", "striped"),)),
    "a small red circle on a gray background": Facts((Thing("red", "circle", None, "small"),), background="gray"),
    "a large checkered orange hexagon on an olive background": Facts((ORANGE,), background="olive"),
    "a red circle to the left of a large checkered orange hexagon": Facts((RED, ORANGE), "to the left of"),
    "an orange ring above a red circle on a navy background": Facts(
        (Thing("orange", "ring"), RED), "above", background="navy"
    ),
    "two red circles": Facts((RED,), count=2),
    "three orange crosses on an olive background": Facts((Thing("orange", "cross"),), count=3, background="olive"),
    "four pink hearts": Facts((Thing("pink", "heart"),), count=4),
    "five white rings": Facts((Thing("white", "ring"),), count=5),
}


@pytest.mark.parametrize("text", SAID)
def test_facts_are_said_in_the_plain_grammar_and_understood_again(text: str) -> None:
    assert caption(SAID[text]) == text
    assert parse(text) == SAID[text]
    assert parse(f"  {text.title().replace(' ', '  ')}.\n") == SAID[text]


@pytest.mark.parametrize("text", [text for text in SAID if "to the left" not in text and "above" not in text])
def test_half_of_the_captions_are_plain_and_the_others_start_in_all_five_ways(text: str) -> None:
    facts, number = SAID[text], 600
    told = Counter(caption(facts, np.random.default_rng(seed)).removesuffix(text) for seed in range(number))
    there = "there are " if facts.count > 1 else "there is "
    assert told.keys() == {"", "a picture of ", "an image of ", "a drawing of ", there, "we see "}
    assert abs(told.pop("") - number / 2) < 4 * (number / 4) ** 0.5
    assert min(told.values()) > number / 20
    assert all(parse(start + text) == facts for start in told)


@pytest.mark.parametrize("relation", INVERSE)
def test_half_of_the_relations_are_told_from_the_other_side(relation: str) -> None:
    facts, number = Facts((RED, ORANGE), relation), 400
    told = [parse(caption(facts, np.random.default_rng(seed))) for seed in range(number)]
    other = Facts((ORANGE, RED), INVERSE[relation])
    assert INVERSE[INVERSE[relation]] == relation != INVERSE[relation]
    assert {*told} == {facts, other}
    assert abs(told.count(facts) - number / 2) < 4 * (number / 4) ** 0.5


@pytest.mark.parametrize(
    "text",
    [
        "", "a circle", "red circle", "a red", "a striped small red circle", "a red circle circle", "one red circle",
        "two red circle", "six red circles", "two small red circles", "a red circle above", "a red circle by a star",
        "a red circle on a pink background", "a red circle on gray background", "a red circle. a star", "a red circled",
    ],
)  # fmt: skip
def test_what_is_not_in_the_language_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is not in the shapes language; expected e.g. 'a small red circle'"):
        parse(text)


def drawn(number: int, category: str | None = None) -> list[Facts]:
    rng = np.random.default_rng(5)
    return [sample_facts(rng, "train", category) for _ in range(number)]  # type: ignore[arg-type]


def near(count: int, share: float, number: int, lost: float = 0.03) -> bool:
    """Within chance, and what is lost to combinations that are held out or do not occur."""
    return abs(count / number - share) < 4 * (share * (1 - share) / number) ** 0.5 + lost


def test_kinds_of_captions_occur_as_often_as_is_said() -> None:
    facts = drawn(3000)
    assert near(sum(one.count > 1 for one in facts), 1 / 2, len(facts))
    assert near(sum(one.relation is not None for one in facts), 1 / 3, len(facts))
    assert near(sum(one.background is not None for one in facts), 0.4, len(facts))
    counts = Counter(one.count for one in facts if one.count > 1)
    assert counts.keys() == {2, 3, 4, 5}
    assert all(near(count, 1 / 4, sum(counts.values()), 0) for count in counts.values())
    relations = Counter(one.relation for one in facts if one.relation)
    assert relations.keys() == INVERSE.keys()
    assert all(near(count, 1 / 4, sum(relations.values()), 0) for count in relations.values())


@pytest.mark.parametrize("category", ["single", "background", "relation"])
def test_words_for_things_occur_as_often_as_one_another(category: str) -> None:
    facts = drawn(1500, category)
    things = [thing for one in facts for thing in one.things]
    assert near(sum(thing.size is not None for thing in things), 0.4, len(things))
    assert near(sum(thing.pattern is not None for thing in things), 0.3 * 9 / 10, len(things))
    sizes, patterns = Counter(thing.size for thing in things), Counter(thing.pattern for thing in things)
    assert near(sizes["small"], 1 / 2, sizes["small"] + sizes["large"], 0)
    assert all(near(patterns[word], 1 / 3, sum(patterns[p] for p in PATTERNS), 0) for word in PATTERNS)
    assert {thing.color for thing in things} == set(COLORS)
    assert {thing.shape for thing in things} == set(SHAPES)
    assert not any(thing.pattern for thing in things if thing.color == "black"), "its dark half looks the same"
    found = {one.background for one in facts if one.background}
    assert found == (set() if category != "background" else set(BACKGROUNDS))
    assert {one.category for one in facts} == {category}


def test_counted_things_have_no_size_and_no_pattern() -> None:
    things = [one.things[0] for one in drawn(300, "counting")]
    assert {(thing.size, thing.pattern) for thing in things} == {(None, None)}


def test_what_cannot_be_seen_is_not_asked_for() -> None:
    black, white = Thing("black", "ring"), Thing("white", "star")
    assert set(BACKGROUNDS) - set(allowed_backgrounds(Facts((black,)))) == {"navy"}
    assert set(BACKGROUNDS) - set(allowed_backgrounds(Facts((white, black), "above"))) == {"navy", "cream"}
    for facts in [*drawn(1000), *drawn(500, "background"), *drawn(500, "relation")]:
        seen = {(thing.color, facts.background) for thing in facts.things}
        assert not seen & {("black", "navy"), ("white", "cream")}
        pairs = [(thing.color, thing.shape) for thing in facts.things]
        assert len({*pairs}) == len(pairs), "two things of a relation look different"


def test_one_held_out_thing_holds_the_caption_out_wherever_it_stands() -> None:
    held, free = Thing(*sorted(HELDOUT_PAIRS)[0]), Thing("red", "circle")
    assert [is_heldout(Facts(things, relation)) for things, relation in (
        ((held,), None), ((free,), None), ((held, free), "above"), ((free, held), "above"),
    )] == [True, False, True, True]  # fmt: skip
    assert is_heldout(Facts((held,), count=3, background="gray"))


def test_every_choice_is_as_likely() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(choice(rng, "abc") for _ in range(3000))
    assert all(near(counts[letter], 1 / 3, 3000, 0) for letter in "abc")
