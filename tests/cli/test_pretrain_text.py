"""The demo T5's documents: one scene told twice, nothing held out."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from transformers import T5Tokenizer

from imagen.cli import pretrain_text
from imagen.cli.pretrain_text import DEMO, PLACES, document, main, tell_places
from imagen.data.shapes.language import INVERSE, is_heldout, parse
from imagen.text.pretrain import PretrainConfig, pretrain, train_tokenizer

TINY = PretrainConfig(d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8, steps=0)


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
    orders = []
    for seed in range(60):
        told = tell_places(parse(text), np.random.default_rng(seed)).split(". ")
        assert dict(sentence.split(" there is ") for sentence in told) == places
        orders.append(told[0].startswith(next(iter(places))))
    assert 15 < sum(orders) < 45, "in either order"


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


def test_documents_are_told_in_every_way_as_often_as_is_said():
    number = 2000
    texts = [document(index).split(". ") for index in range(number)]
    alone = [rest for _, *rest in texts if not rest]
    assert abs(len(alone) - number / 5) < 4 * (number * 0.16) ** 0.5
    related = [(parse(first), rest) for first, *rest in texts if rest and parse(first).relation]
    by_place = [told for told in related if len(told[1]) == 2]
    assert abs(len(by_place) - 0.75 * len(related)) < 4 * (len(related) * 0.1875) ** 0.5
    assert all(len(rest) < 2 for first, *rest in texts if not parse(first).relation)


def test_a_document_is_a_function_of_its_seed_and_number():
    first = [document(index, 2) for index in range(20)]
    assert first == [document(index, 2) for index in range(20)]
    assert len({*first}) > 15
    assert sum(a == b for a, b in zip(first, (document(index, 3) for index in range(20)), strict=True)) < 3


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Path:
    """A pre-trained one: the tokenizer of the first sentences of 20 documents."""
    tokenizer = train_tokenizer(document(index).partition(". ")[0] for index in range(200))
    return pretrain(document, tokenizer, TINY, tmp_path_factory.mktemp("t5"))


def test_the_command_trains_on_its_own_documents_from_nothing_or_from_another(tmp_path, monkeypatch, started):
    seen = {}

    def train(document, tokenizer, config, out):
        seen.update(documents=[document(index) for index in range(5)], tokenizer=tokenizer, config=config, out=out)

    monkeypatch.setattr(pretrain_text, "pretrain", train)
    monkeypatch.setattr(pretrain_text, "train_tokenizer", lambda captions: list(islice(captions, 99)))
    options = ["--t5.steps=0", "--t5.seed=4", "--t5.num_heads=2", "--t5.mean_span=2.5"]
    assert main(["--out", str(tmp_path / "new"), *options]) == 0
    assert seen["config"] == replace(DEMO, steps=0, seed=4, num_heads=2, mean_span=2.5)
    assert seen["out"] == tmp_path / "new"
    assert seen["documents"] == [document(index, 4) for index in range(5)]
    assert seen["tokenizer"] == [document(index, 4).partition(". ")[0] for index in range(99)]
    assert main(["--out", str(tmp_path / "new"), f"--t5.init_from={started}"]) == 0
    assert seen["tokenizer"].get_vocab() == T5Tokenizer.from_pretrained(started / "tokenizer").get_vocab()
    assert seen["config"].init_from == started
