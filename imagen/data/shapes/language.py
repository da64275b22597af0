"""The caption language of the shapes world: what can be said, what it means, and what is held out.

Three forms, each of which may end in ``on a BACKGROUND background``::

    a [small|large] [striped|dotted|checkered] COLOR SHAPE
    THING above|below|to the left of|to the right of THING
    two|three|four|five COLOR SHAPEs

A tenth of the COLOR x SHAPE pairs and a tenth of the two-object combinations never occur in the ``train`` split
(neither in pictures nor in the text the demo's T5 is pre-trained on); every member of the ``heldout`` split holds one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Category = Literal["single", "relation", "counting", "background"]
Split = Literal["train", "heldout"]
Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "cyan": (40, 200, 210),
    "pink": (245, 130, 180),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
BACKGROUNDS: dict[str, Rgb] = {
    "gray": (128, 128, 128),
    "navy": (20, 25, 70),
    "cream": (245, 235, 210),
    "olive": (95, 100, 45),
    "brown": (110, 70, 40),
    "teal": (0, 105, 110),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "hexagon", "ring", "cross")
PATTERNS = ("striped", "dotted", "checkered")
SIZES = ("small", "large")
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}
INVERSE = {"above": "below", "below": "above", "to the left of": "to the right of", "to the right of": "to the left of"}
RELATIONS = tuple(INVERSE)
INVISIBLE = {("black", "navy"), ("white", "cream")}  # (colour, background) pairs that do not occur

# of each shape, in order, one colour
HELDOUT_PAIRS = frozenset(
    zip(("purple", "orange", "pink", "cyan", "green", "red", "yellow", "blue"), SHAPES, strict=True)
)
# one caption in two starts bare, as in the grammar above; the others are paraphrases
_PREFIXES = ("a picture of ", "an image of ", "a drawing of ", "there is ", "we see ")


@dataclass(frozen=True)
class Thing:
    """One object as a caption names it; ``None`` means that the caption says nothing (an unnamed pattern is plain)."""

    color: str
    shape: str
    pattern: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a caption says: one thing, two in a relation (the first RELATION the second), or ``count`` equal things."""

    things: tuple[Thing, ...]
    relation: str | None = None
    count: int = 1
    background: str | None = None

    @property
    def category(self) -> Category:
        """``relation``, ``counting``, ``background`` (one object, background named) or ``single``."""
        if self.relation is not None:
            return "relation"
        if self.count > 1:
            return "counting"
        return "single" if self.background is None else "background"


def allowed_backgrounds(facts: Facts) -> list[str]:
    """Names of the backgrounds on which every object of ``facts`` can be seen."""
    return [b for b in BACKGROUNDS if all((thing.color, b) not in INVISIBLE for thing in facts.things)]


def is_heldout(facts: Facts) -> bool:
    """Whether ``facts`` holds a COLOR x SHAPE pair or a two-object combination that no training stage may see.

    A two-object combination is the unordered set of both pairs, whatever the relation; a tenth is held out by hash.
    """
    pairs = [(thing.color, thing.shape) for thing in facts.things]
    if any(pair in HELDOUT_PAIRS for pair in pairs):
        return True
    if len(pairs) < 2:
        return False
    name = " & ".join(sorted(f"{color} {shape}" for color, shape in pairs))
    return zlib.crc32(name.encode()) % 10 == 0


def choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of them, all as likely."""
    return options[int(rng.integers(len(options)))]


def _sample_thing(rng: np.random.Generator, qualified: bool = True) -> Thing:
    color, shape = choice(rng, list(COLORS)), choice(rng, SHAPES)
    size = choice(rng, SIZES) if qualified and rng.random() < 0.4 else None
    # black and its half-dark twin look the same, so a pattern on black is never asked for
    patterned = qualified and color != "black" and rng.random() < 0.3
    return Thing(color, shape, choice(rng, PATTERNS) if patterned else None, size)


def _draw(rng: np.random.Generator, category: Category | None) -> Facts:
    kind = category or ("single", "relation", "relation", "counting", "counting", "counting")[int(rng.integers(6))]
    background = None
    if category == "background" or (category is None and rng.random() < 0.4):
        background = choice(rng, list(BACKGROUNDS))
    if kind == "relation":
        return Facts((_sample_thing(rng), _sample_thing(rng)), relation=choice(rng, RELATIONS), background=background)
    if kind == "counting":
        return Facts((_sample_thing(rng, qualified=False),), count=int(rng.integers(2, 6)), background=background)
    return Facts((_sample_thing(rng),), background=background)


def occurs(facts: Facts) -> bool:
    """Two things differ in colour or shape, every object can be seen on a named background, and every pattern."""
    if len({(thing.color, thing.shape) for thing in facts.things}) < len(facts.things):
        return False
    if any(thing.color == "black" and thing.pattern is not None for thing in facts.things):
        return False
    return facts.background is None or facts.background in allowed_backgrounds(facts)


def sample_facts(rng: np.random.Generator, split: Split = "train", category: Category | None = None) -> Facts:
    """Draw facts of a split.

    With ``category=None`` half are numbers, which are the hardest, a third relations and a sixth single things; a
    background is named in 40 %.
    """
    while True:
        facts = _draw(rng, category)
        if occurs(facts) and is_heldout(facts) == (split == "heldout"):
            return facts


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


def _thing_phrase(thing: Thing) -> str:
    return _article(" ".join(word for word in (thing.size, thing.pattern, thing.color, thing.shape) if word))


def caption(facts: Facts, rng: np.random.Generator | None = None) -> str:
    """Say ``facts``: the plain grammar without ``rng``, else one of its paraphrases ("there is ...", "B below A")."""
    first, relation = facts.things[0], facts.relation
    if relation is not None:
        second = facts.things[1]
        if rng is not None and rng.random() < 0.5:
            first, second, relation = second, first, INVERSE[relation]
        text = f"{_thing_phrase(first)} {relation} {_thing_phrase(second)}"
    elif facts.count > 1:
        text = f"{COUNTS[facts.count]} {first.color} {_plural(first.shape)}"
    else:
        text = _thing_phrase(first)
    if facts.background is not None:
        text += f" on {_article(facts.background)} background"
    if rng is not None and rng.random() < 0.5:
        prefix = choice(rng, _PREFIXES)
        text = (prefix.replace(" is ", " are ") if facts.count > 1 else prefix) + text
    return text


# four groups
_THING = rf"an? (?:({'|'.join(SIZES)}) )?(?:({'|'.join(PATTERNS)}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_GRAMMAR = re.compile(
    rf"(?:{'|'.join(_PREFIXES)}|there are )?"
    rf"(?:{_THING}(?: ({'|'.join(RELATIONS)}) {_THING})?"
    rf"|({'|'.join(COUNTS.values())}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})e?s)"
    rf"(?: on an? ({'|'.join(BACKGROUNDS)}) background)?"
)


def parse(text: str) -> Facts:
    """The facts of a caption: the inverse of :func:`caption` up to the order in which a relation is told.

    Raises:
        ValueError: ``text`` is not in the language.
    """
    match = _GRAMMAR.fullmatch(" ".join(text.lower().split()).rstrip("."))
    if match is None:
        raise ValueError(f"caption {text!r} is not in the shapes language; expected e.g. 'a small red circle'")
    size, pattern, color, shape, relation, *second, count, colors, shapes, background = match.groups()
    if count is not None:
        number = next(n for n, word in COUNTS.items() if word == count)
        return Facts((Thing(colors, shapes),), count=number, background=background)
    things: tuple[Thing, ...] = (Thing(color, shape, pattern, size),)
    if relation is not None:
        size, pattern, color, shape = second
        things += (Thing(color, shape, pattern, size),)
    return Facts(things, relation=relation, background=background)
