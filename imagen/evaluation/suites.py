"""Prompt suites: reproducible lists of captions with their facts and the seed that each picture is sampled from."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from imagen.checks import check_choice
from imagen.data.shapes.language import Category, Facts, Split, caption, sample_facts

SuiteName = Literal["heldout", "train", "tune"]
CATEGORIES: tuple[Category, ...] = ("single", "relation", "counting", "background")
# Which captions a suite takes, and its first seed. Settings are chosen on "tune", which meets no held-out combination.
_SUITES: dict[str, tuple[Split, int]] = {"heldout": ("heldout", 0), "train": ("train", 0), "tune": ("train", 1_000_000)}


@dataclass(frozen=True)
class Prompt:
    """A caption, what it says, and the seed of the one picture that is sampled for it."""

    text: str
    facts: Facts
    seed: int

    @property
    def category(self) -> Category:
        """The category of the facts."""
        return self.facts.category


def suite(name: SuiteName, num: int, seed: int = 0, categories: tuple[Category, ...] = CATEGORIES) -> list[Prompt]:
    """``num`` prompts with the seeds ``seed``, ``seed + 1``, ..., taking the categories in turn.

    ``heldout`` prompts each contain a held-out combination; ``train`` and ``tune`` contain none, and ``tune`` counts
    its seeds from 1,000,000. Half of the captions are paraphrases, as in training.

    Raises:
        ValueError: an unknown suite, or a negative number or seed.
    """
    if num < 1 or seed < 0:
        raise ValueError(f"num is {num} and seed is {seed}; expected at least one prompt and a seed of 0 or more")
    split, first = _SUITES[check_choice("split", name, get_args(SuiteName))]
    prompts = []
    for index in range(num):
        number = first + seed + index
        rng = np.random.default_rng([zlib.crc32(name.encode()), number])
        facts = sample_facts(rng, split, categories[index % len(categories)])
        prompts.append(Prompt(caption(facts, rng), facts, number))
    return prompts


def shuffled(prompt: Prompt) -> Prompt:
    """The same facts and seed with the caption's words in another order: a control of whether word order is read."""
    words = prompt.text.split()
    rng = np.random.default_rng([zlib.crc32(b"shuffle"), prompt.seed])
    mixed = words
    while mixed == words and len(set(words)) > 1:
        mixed = [words[i] for i in rng.permutation(len(words))]
    return Prompt(" ".join(mixed), prompt.facts, prompt.seed)
