"""What a CLIP sees of the shapes world: rendered pictures, each with texts of which one alone is true.

Colour and shape are named among all pairs there are, those that training never showed beside the others. The other
questions have few answers: how many, in which relation, and whether words have changed places.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from imagen.data.shapes.language import (
    COLORS,
    COUNTS,
    HELDOUT_PAIRS,
    INVERSE,
    SHAPES,
    Facts,
    Split,
    Thing,
    allowed_backgrounds,
    caption,
    choice,
    sample_facts,
)
from imagen.data.shapes.layout import place
from imagen.data.shapes.render import render
from imagen.evaluation.report import table, write_result
from imagen.evaluation.stats import Share
from imagen.evaluation.zeroshot import Classified, class_vectors, classify, load_clip, save_confusion
from imagen.scores.encoders import DualEncoder

SIZE = 64
EACH = 400  # pictures of each question
TEMPLATES = ("{}", "a picture of {}", "an image of {}", "a drawing of {}", "there is {}", "we see {}")
PAIRS = tuple(itertools.product(COLORS, SHAPES))
SPLITS: tuple[Split, ...] = ("train", "heldout")
ANSWERS = {"colour and shape": len(PAIRS), "number": len(COUNTS), "relation": len(INVERSE), "swapped words": "2 to 4"}


class Question(NamedTuple):
    """A picture and texts, of which the first is true."""

    picture: Image.Image
    texts: Sequence[str]


def drawn(facts: Facts, rng: np.random.Generator) -> Image.Image:
    """The renderer's picture of facts, 64 px."""
    pixels = render(place(facts, rng), SIZE)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def pairs(encoder: DualEncoder, seed: int, num: int, batch_size: int = 64) -> Classified:
    """Single things among all pairs of colour and shape: ``num`` pictures of known pairs, and as many of held-out ones,
    rounded up to as many of each.
    """
    rng = np.random.default_rng([seed, 1])
    pictures, truth = [], []
    for number, pair in enumerate(PAIRS):
        alike = [other for other in PAIRS if (other in HELDOUT_PAIRS) == (pair in HELDOUT_PAIRS)]
        for _ in range(-(-num // len(alike))):
            thing = Thing(*pair)
            background = choice(rng, allowed_backgrounds(Facts((thing,))))
            pictures.append(drawn(Facts((thing,), background=background), rng))
            truth.append(number)
    names = [caption(Facts((Thing(*pair),))) for pair in PAIRS]
    return classify(encoder.images(pictures, batch_size), truth, class_vectors(encoder, names, TEMPLATES), names)


def counts(facts: Facts) -> list[Facts]:
    """The same things in other numbers."""
    return [replace(facts, count=count) for count in COUNTS if count != facts.count]


def relations(facts: Facts) -> list[Facts]:
    """The same two things in other relations."""
    return [replace(facts, relation=relation) for relation in INVERSE if relation != facts.relation]


def swapped(facts: Facts) -> list[Facts]:
    """The two things in each other's places; with each other's colours, and shapes, where that is another scene."""
    first, second = facts.things
    pair = (
        (second, first),
        (replace(first, color=second.color), replace(second, color=first.color)),
        (replace(first, shape=second.shape), replace(second, shape=first.shape)),
    )
    others = [replace(facts, things=things) for things in pair]
    return [other for other in dict.fromkeys(others) if other != facts]


QUESTIONS = {
    "number": ("counting", counts),
    "relation": ("relation", relations),
    "swapped words": ("relation", swapped),
}


def questions(kind: str, split: Split, seed: int, num: int) -> Iterator[Question]:
    """``num`` questions of a kind about scenes of a split."""
    category, others = QUESTIONS[kind]
    for number in range(num):
        rng = np.random.default_rng([seed, 2 + list(QUESTIONS).index(kind), SPLITS.index(split), number])
        facts = sample_facts(rng, split, category)  # type: ignore[arg-type]  # one of the categories
        yield Question(drawn(facts, rng), [caption(one) for one in (facts, *others(facts))])


def asked(encoder: DualEncoder, found: Sequence[Question], batch_size: int = 64) -> Share:
    """How often the true text is nearer than all others."""
    images = encoder.images([one.picture for one in found], batch_size)
    texts = encoder.texts([text for one in found for text in one.texts])
    starts = np.cumsum([0, *(len(one.texts) for one in found)])
    cosines = [texts[a:b] @ image for image, a, b in zip(images, starts[:-1], starts[1:], strict=True)]
    return Share.of([bool(one[0] > one[1:].max()) for one in cosines])


def shares(
    encoder: DualEncoder, seed: int, num: int, batch_size: int = 64
) -> tuple[Classified, dict[str, dict[str, Share]]]:
    """The classified pairs, and of every question the shares that were right, of either split."""
    classified = pairs(encoder, seed, num, batch_size)
    kept = np.array([pair in HELDOUT_PAIRS for pair in PAIRS])[classified.truth]
    right = classified.order[:, 0] == classified.truth
    found: dict[str, dict[str, Share]] = defaultdict(dict)
    for split, rows in (("train", ~kept), ("heldout", kept)):
        found["colour and shape"][split] = Share.of(right[rows].tolist())
    for kind, split in itertools.product(QUESTIONS, SPLITS):
        found[kind][split] = asked(encoder, list(questions(kind, split, seed, num)), batch_size)
    return classified, dict(found)


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Ask all questions, print the table, write ``zeroshot.json`` and ``confusion.png``."""
    num = EACH if args.num is None else args.num
    if num < 1 or args.seed < 0:
        raise ValueError(f"--num is {num} and --seed {args.seed}; expected at least 1 picture and a seed of 0 or more")
    encoder = load_clip(args)
    classified, found = shares(encoder, args.seed, num, args.batch_size)
    rows = [(kind, ANSWERS[kind], each["train"], each["heldout"]) for kind, each in found.items()]
    print(table([("question", "answers", "known combinations, 95 % interval", "held out"), *rows]))
    save_confusion(args.out / "confusion.png", classified)
    write_result(args, command, clip=encoder.name, questions=found, pairs=classified)
