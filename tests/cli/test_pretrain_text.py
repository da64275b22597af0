"""The demo T5's documents: one scene told twice, nothing held out."""

import numpy as np
import pytest

from imagen.cli.pretrain_text import document, tell_places
from imagen.data.shapes.language import INVERSE, is_heldout, parse


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("a red circle above a blue square", {"above": "a red circle", "below": "a blue square"}),
        ("a red circle below a blue square", {"below": "a red circle", "above": "a blue square"}),
        (
            "a small red circle to the left of an orange ring",
            {"to the left": "a small red circle", "to the right": "an orange ring"},
        ),
    ],
)
def test_places_are_those_of_the_relation(text, places):
    for seed in range(4):
        told = tell_places(parse(text), np.random.default_rng(seed)).split(". ")
        assert dict(sentence.split(" there is ") for sentence in told) == places


def test_both_tellings_agree_and_hold_nothing_out():
    kinds = set()
    for index in range(500):
        first, *rest = document(index).split(". ")
        facts = parse(first)
        assert not is_heldout(facts)
        if len(rest) == 2:
            kinds.add("places")
            told = dict(sentence.split(" there is ") for sentence in rest)
            above, below = (parse(told[place]).things[0] for place in sorted(told))
            if facts.relation in ("below", "to the right of"):
                above, below = below, above
            assert facts.things == (above, below)
        elif rest:
            kinds.add("caption")
            again = parse(rest[0])
            same = again == facts
            turned = facts.relation and again.relation == INVERSE[facts.relation]
            assert same or (turned and again.things == facts.things[::-1])
        else:
            kinds.add("one")
    assert kinds == {"places", "caption", "one"}
