"""The demo T5's documents: one scene told twice, nothing held out."""

import numpy as np
import pytest

from imagen.cli.pretrain_text import PLACES, document, main, tell_places
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
        if not rest:
            kinds.add("one")
        elif " there is " in rest[0] and not rest[0].startswith("there"):
            kinds.add("places")
            told = dict(sentence.split(" there is ") for sentence in rest)
            assert facts.things == places(facts, {place: parse(text).things[0] for place, text in told.items()})
        else:
            kinds.add("caption")
            again = parse(rest[0])
            turned = facts.relation and again.relation == INVERSE[facts.relation]
            assert again == facts or (turned and again.things == facts.things[::-1])
    assert kinds == {"places", "caption", "one"}


def places(facts, things):
    """The things in the order in which the facts name them."""
    return tuple(things[place] for place in PLACES[facts.relation])


@pytest.mark.parametrize(
    "option",
    ["steps=-1", "batch_size=0", "num_heads=0", "mean_span=0.5", "noise_density=1", "continuation_share=1.5",
     "learning_rate=0", "warmup=-1", "init_from=nowhere"],
)  # fmt: skip
def test_a_wrong_option_is_one_line(tmp_path, capsys, option):
    assert main(["--out", str(tmp_path / "t5"), f"--t5.{option}"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith("pretrain_text: error: ")
    assert option.partition("=")[0] in message
    assert option.partition("=")[2] in message
    assert not (tmp_path / "t5").exists()
