"""What a CLIP is asked of the shapes world: one text is true, the others are not, and known answers are counted."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imagen.data.shapes.language import COLORS, HELDOUT_PAIRS, INVERSE, SHAPES, is_heldout, occurs, parse
from imagen.evaluation.__main__ import main
from imagen.evaluation.judge import check
from imagen.evaluation.shapes_zeroshot import PAIRS, QUESTIONS, SPLITS, Question, asked, pairs, questions, shares
from imagen.evaluation.shapes_zeroshot import drawn as drawn_picture
from imagen.evaluation.stats import Share
from tests.evaluation.coloured import Blind
from tests.factories import save_clip, save_siglip


class Written(Blind):
    """An encoder of texts by their letters, of pictures by what is written into them: who is right is known."""

    def __init__(self, told: dict[bytes, str]) -> None:
        self.told = told

    def images(self, pictures: Any, batch_size: int = 64) -> Tensor:
        return self.texts([self.told[picture.tobytes()] for picture in pictures])

    def texts(self, texts: Any, batch_size: int = 256) -> Tensor:
        rows = [[np.random.default_rng(list(text.encode())).standard_normal(64)] for text in texts]
        return torch.nn.functional.normalize(torch.from_numpy(np.concatenate(rows)).float(), dim=1)


@pytest.mark.parametrize(("kind", "split"), itertools.product(QUESTIONS, SPLITS))
def test_one_text_is_true_and_the_detector_says_so(kind: str, split: Any) -> None:
    for question in questions(kind, split, 3, 5):
        facts = [parse(text) for text in question.texts]
        assert len(set(question.texts)) == len(facts) > 1
        assert is_heldout(facts[0]) == (split == "heldout")
        assert all(occurs(one) for one in facts[:1])
        assert question.picture.size == (64, 64)
        assert check(question.picture, facts[0]).ok
        assert not any(check(question.picture, one).ok for one in facts[1:])


def test_the_others_of_each_question() -> None:
    number = [parse(text) for text in next(questions("number", "train", 0, 1)).texts]
    assert sorted(one.count for one in number) == [2, 3, 4, 5]
    assert len({one.things for one in number}) == 1
    relation = [parse(text) for text in next(questions("relation", "train", 0, 1)).texts]
    assert {one.relation for one in relation} == {*INVERSE}
    sizes = Counter[int]()
    for question in questions("swapped words", "train", 0, 60):
        true, *others = [parse(text) for text in question.texts]
        words = [sorted({"an": "a"}.get(word, word) for word in text.split()) for text in question.texts]
        assert all(one == words[0] for one in words)
        assert all(one.relation == true.relation and one != true for one in others)
        assert true.things[::-1] in [one.things for one in others]
        sizes[len(question.texts)] += 1
    assert {*sizes} == {2, 3, 4}


def test_questions_are_their_seeds() -> None:
    first, again, other = ([one.texts for one in questions("number", "train", s, 5)] for s in (0, 0, 1))
    assert first == again != other
    assert [one.texts for one in questions("number", "train", 0, 3)] == first[:3]


def test_who_is_right_is_counted_and_a_tie_is_no_hit() -> None:
    pictures = [Image.new("L", (2, 2), value) for value in range(3)]
    told = {pictures[0].tobytes(): "a", pictures[1].tobytes(): "b", pictures[2].tobytes(): "c"}
    encoder: Any = Written(told)
    asks = [
        Question(pictures[0], ["a", "b"]),
        Question(pictures[1], ["x", "b", "y"]),
        Question(pictures[2], ["c", "a"]),
    ]
    assert asked(encoder, asks) == Share(2, 3)
    blind: Any = Blind()
    assert asked(blind, asks) == Share(0, 3)


def test_pairs_are_as_many_of_each_and_split_in_known_and_held_out() -> None:
    blind: Any = Blind()
    found = pairs(blind, 0, 100)
    counts = Counter(PAIRS[number] in HELDOUT_PAIRS for number in found.truth)
    assert counts == {False: 144, True: 104}, "rounded up to as many of each"
    assert len(found.names) == len(COLORS) * len(SHAPES)
    assert found.names[found.truth[0]] == "a red circle"
    _, told = shares(blind, 0, 9)
    assert {kind: {split: one.trials for split, one in each.items()} for kind, each in told.items()} == {
        "colour and shape": {"train": 72, "heldout": 16}, **{kind: {"train": 9, "heldout": 9} for kind in QUESTIONS}
    }  # fmt: skip
    assert told["colour and shape"]["train"] == Share(1, 72), "the first name for all"
    assert told["number"]["heldout"] == Share(0, 9)


def test_pictures_of_pairs_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[Any, Any]] = []

    def noted(facts: Any, rng: Any) -> Image.Image:
        shown.append((facts, drawn_picture(facts, rng)))
        return shown[-1][1]

    monkeypatch.setattr("imagen.evaluation.shapes_zeroshot.drawn", noted)
    blind: Any = Blind()
    truth = pairs(blind, 0, 8).truth
    for number, (facts, picture) in zip(truth[::5], shown[::5], strict=True):
        (thing,) = facts.things
        assert (thing.color, thing.shape) == PAIRS[number]
        assert check(picture, facts).ok


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_the_command_end_to_end(
    save: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "zeroshot",
        "--clip",
        str(save(tmp_path / "drawn")),
        "--num",
        "2",
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    result = json.loads((tmp_path / "zeroshot.json").read_text())
    assert {*result["questions"]} == {"colour and shape", *QUESTIONS}
    assert sum(map(sum, result["pairs"]["confusion"])) == 80
    assert Image.open(tmp_path / "confusion.png").width > 300
    assert "held out" in capsys.readouterr().out
    assert main([*words, "--num", "0"]) == 2
    assert "--num is 0" in capsys.readouterr().err.splitlines()[-1]
