"""A T5's documents: of the demo one scene told twice, nothing held out; else the captions of a source."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from transformers import T5Tokenizer

from imagen.cli import pretrain_text
from imagen.cli.pretrain_text import DEFAULT, PLACES, document, main, tell_places
from imagen.data.shapes.language import INVERSE, is_heldout, parse
from imagen.text.encoder import load_text_encoder, unknown_characters
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

    def train(document, tokenizer, config, out, texts):
        seen.update(documents=[document(index) for index in range(5)], tokenizer=tokenizer, config=config, out=out)

    monkeypatch.setattr(pretrain_text, "pretrain", train)
    monkeypatch.setattr(pretrain_text, "train_tokenizer", lambda captions, spelling: list(islice(captions, 99)))
    options = ["--t5.steps=0", "--t5.seed=4", "--t5.num_heads=2", "--t5.mean_span=2.5"]
    assert main(["--out", str(tmp_path / "new"), *options]) == 0
    assert seen["config"] == replace(DEFAULT, steps=0, seed=4, num_heads=2, mean_span=2.5)
    assert seen["out"] == tmp_path / "new"
    assert seen["documents"] == [document(index, 4) for index in range(5)]
    assert seen["tokenizer"] == [document(index, 4).partition(". ")[0] for index in range(99)]
    assert main(["--out", str(tmp_path / "new"), f"--t5.init_from={started}"]) == 0
    assert seen["tokenizer"].get_vocab() == T5Tokenizer.from_pretrained(started / "tokenizer").get_vocab()
    assert seen["config"].init_from == started


OWN = {"a": ["a leaf with three holes"], "b": ["Über 5 µm", "ein Blatt"], "c": [" "], "d": ["a stone"]}
SMALL = [f"--t5.{key}" for key in ("d_model=8", "d_ff=8", "num_layers=1", "num_heads=1", "d_kv=8", "batch_size=4")]


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Four captioned pictures, one of them with a blank caption; they are never decoded."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, captions in OWN.items():
        (folder / f"{name}.png").write_bytes(b"no picture")
        (folder / f"{name}.txt").write_text("\n".join(captions), encoding="utf-8")
    return folder


def test_the_captions_of_any_source_and_the_lines_of_a_file_are_documents(pictures, tmp_path, capsys, monkeypatch):
    table, file = tmp_path / "list.csv", tmp_path / "captions.txt"
    all_of_them = ["a leaf with three holes", "Über 5 µm", "ein Blatt", "a stone"]
    table.write_text("file_name,text\n" + "".join(f"x.png,{text}\n" for text in [*all_of_them, "  "]), encoding="utf-8")
    file.write_text("\n".join([*all_of_them, "", " "]), encoding="utf-8")
    told = []
    monkeypatch.setattr(
        pretrain_text,
        "pretrain",
        lambda document, tokenizer, config, out, texts: told.append(
            ([document(index) for index in range(40)], tokenizer.get_vocab(), texts)
        ),
    )
    for words in (
        ["--data.kind=folder", f"--data.path={pictures}"],
        ["--data.kind=table", f"--data.path={table}"],
        [f"--captions={file}"],
    ):
        assert main([f"--out={tmp_path / 't5'}", *words]) == 0
        assert "4 captions, 4 different ones; a tokenizer of" in capsys.readouterr().out
    assert told[0] == told[1] == told[2]
    documents, vocabulary, _ = told[0]
    for epoch in range(0, 40, 4):
        assert sorted(documents[epoch : epoch + 4]) == sorted(all_of_them)
    assert documents[:4] != documents[4:8] or documents[:4] != documents[8:12], "each epoch has its own order"
    assert {"▁leaf", "▁stone", "▁über", "▁blatt"} <= set(vocabulary)
    assert main([f"--out={tmp_path / 't5'}", f"--captions={file}", "--t5.seed=1"]) == 0
    assert told[3][0] != documents
    template = ["--data.kind=folder", f"--data.path={pictures}", "--data.template", "a photo of {}"]
    assert main([f"--out={tmp_path / 't5'}", *template]) == 0
    assert "a photo of ein Blatt" in told[4][0]
    assert told[4][2] != told[0][2]


def test_a_small_encoder_of_own_captions_resumes_and_refuses_other_captions(pictures, tmp_path, capsys):
    out = tmp_path / "t5"
    words = [f"--out={out}", "--data.kind=folder", f"--data.path={pictures}", *SMALL]
    assert main([*words, "--t5.steps=2"]) == 0
    assert "text.encoder" in capsys.readouterr().out
    tokenizer, encoder = load_text_encoder(out)
    assert encoder.config.d_model == 8
    assert tokenizer.tokenize("ein stone") == ["▁ein", "▁stone"]
    assert unknown_characters(tokenizer, "é & € Z") == "", "no caption has them"
    assert main([*words, "--t5.steps=20"]) == 0
    assert json.loads((out / "metrics.jsonl").read_text())["step"] == 20
    (pictures / "a.txt").write_text("a leaf with four holes", encoding="utf-8")
    capsys.readouterr()
    assert main([*words, "--t5.steps=20"]) == 2
    assert capsys.readouterr().err == (
        f"pretrain_text: error: '{out}' was begun with other texts: give another --out\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.path=x"], "data.kind is shapes: leave it out or change the kind"),
        (["--data.category=single"], "data.kind shapes takes no other key of data here"),
        (["--data.kind=folder", "--data.path=/nowhere"], "there is no folder '/nowhere'"),
        (["--data.kind=folder"], "data.path is missing"),
        (["--captions=/nowhere.txt"], "cannot read --captions '/nowhere.txt'"),
        (["--captions={blank}"], "blank.txt has no captions, or empty ones alone"),
        (["--captions={blank}", "--data.kind=folder", "--data.path=x"], "and a data section: give one of the two"),
        (["--data.kind=folder", "--data.path={empty}"], "has no captions, or empty ones alone"),
    ],
)
def test_no_captions_are_one_line_and_nothing_is_written(tmp_path, capsys, words, told):
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.png").write_bytes(b"")
    (tmp_path / "empty" / "a.txt").write_text(" ")
    filled = [word.format(blank=tmp_path / "blank.txt", empty=tmp_path / "empty") for word in words]
    assert main([f"--out={tmp_path / 't5'}", *filled]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pretrain_text: error: ")
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "t5").exists()


def test_the_help_says_what_each_key_is(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--data.path PATH the folder, the table or its folder" in said
    assert "a UTF-8 file, a caption a line, in place of a source" in said
