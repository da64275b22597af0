"""Scenes that differ in one fact, so that a model that compares pictures has to see every fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .language import BACKGROUNDS, COLORS, PATTERNS, RELATIONS, SHAPES, SIZES, Facts, Split, choice, is_heldout, occurs


def vary(facts: Facts, rng: np.random.Generator, split: Split = "train") -> Facts:
    """Facts that differ from ``facts`` in one fact: another colour, shape, size, background, number or relation, or two
    things that have changed colours, shapes or places. They are of the same split; a held-out thing that is told by
    nothing but colour and shape gets another pattern, for no other fact of it can be another held-out one.
    """
    bare = facts.category == "single" and facts.things[0].size is None
    changes = (_patterned,) if bare and split == "heldout" else _CHANGES
    while True:
        changed = changes[int(rng.integers(len(changes)))](facts, rng)
        if changed in (None, facts) or not occurs(changed):
            continue
        if is_heldout(changed) == (split == "heldout"):
            return changed


def _other(rng: np.random.Generator, options: Sequence[str], than: str) -> str:
    return choice(rng, [option for option in options if option != than])


def _with_thing(facts: Facts, rng: np.random.Generator, **changes: str) -> Facts:
    """One of the things, drawn, with other words."""
    things = list(facts.things)
    place = int(rng.integers(len(things)))
    things[place] = replace(things[place], **changes)
    return replace(facts, things=tuple(things))


def _recolored(facts: Facts, rng: np.random.Generator) -> Facts | None:
    return _with_thing(facts, rng, color=choice(rng, list(COLORS)))


def _reshaped(facts: Facts, rng: np.random.Generator) -> Facts | None:
    return _with_thing(facts, rng, shape=choice(rng, SHAPES))


def _resized(facts: Facts, rng: np.random.Generator) -> Facts | None:
    sized = [place for place, thing in enumerate(facts.things) if thing.size is not None]
    if not sized:
        return None
    place = sized[int(rng.integers(len(sized)))]
    thing = facts.things[place]
    other = replace(thing, size=_other(rng, SIZES, thing.size or ""))
    return replace(facts, things=(*facts.things[:place], other, *facts.things[place + 1 :]))


def _patterned(facts: Facts, rng: np.random.Generator) -> Facts | None:
    return _with_thing(facts, rng, pattern=_other(rng, PATTERNS, facts.things[0].pattern or ""))


def _moved(facts: Facts, rng: np.random.Generator) -> Facts | None:
    return None if facts.background is None else replace(facts, background=choice(rng, list(BACKGROUNDS)))


def _recounted(facts: Facts, rng: np.random.Generator) -> Facts | None:
    return None if facts.count == 1 else replace(facts, count=int(rng.integers(2, 6)))


def _related(facts: Facts, rng: np.random.Generator) -> Facts | None:
    return None if facts.relation is None else replace(facts, relation=_other(rng, RELATIONS, facts.relation))


def _exchanged(facts: Facts, rng: np.random.Generator) -> Facts | None:
    """Two things with each other's colours, shapes or places."""
    if facts.relation is None:
        return None
    first, second = facts.things
    kind = int(rng.integers(3))
    if kind == 0:
        pair = (replace(first, color=second.color), replace(second, color=first.color))
    elif kind == 1:
        pair = (replace(first, shape=second.shape), replace(second, shape=first.shape))
    else:
        pair = (second, first)
    return replace(facts, things=pair)


_CHANGES = (_recolored, _reshaped, _resized, _moved, _recounted, _related, _exchanged)
