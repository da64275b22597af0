"""Scenes in a row that differ in one fact: which, of which split, and that everything else is as it was."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from imagen.data import ShapesDataset
from imagen.data.config import DataConfig
from imagen.data.order import StepSampler
from imagen.data.shapes.language import HELDOUT_PAIRS, SHAPES, Facts, Split, Thing, is_heldout, occurs, sample_facts
from imagen.data.shapes.variations import vary
from imagen.data.sources import collate
from imagen.errors import ConfigError
from imagen.evaluation.datasets import data_source

THING = [field.name for field in fields(Thing)]


def differences(first: Facts, second: Facts) -> list[str]:
    """Names of the facts that differ: of each thing, and of the whole."""
    assert len(first.things) == len(second.things)
    pairs = zip(first.things, second.things, strict=True)
    found = [name for a, b in pairs for name in THING if getattr(a, name) != getattr(b, name)]
    return found + [
        name for name in ("relation", "count", "background") if getattr(first, name) != getattr(second, name)
    ]


def exchanged(first: Facts, second: Facts) -> bool:
    """Whether two things have changed places, colours or shapes."""
    if len(first.things) < 2 or (first.relation, first.background) != (second.relation, second.background):
        return False
    a, b = first.things
    one, other = second.things
    if (one, other) == (b, a):
        return True
    kept = [(t.pattern, t.size) for t in first.things] == [(t.pattern, t.size) for t in second.things]
    colors = (one.color, other.color, one.shape, other.shape) == (b.color, a.color, a.shape, b.shape)
    shapes = (one.color, other.color, one.shape, other.shape) == (a.color, b.color, b.shape, a.shape)
    return kept and (colors or shapes)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_one_fact_differs_or_two_are_exchanged(split: Split) -> None:
    told: Counter[str] = Counter()
    for seed in range(1500):
        rng = np.random.default_rng(seed)
        facts = sample_facts(rng, split)
        other = vary(facts, rng, split)
        assert occurs(other)
        assert is_heldout(other) == (split == "heldout")
        assert other.category == facts.category
        changed = differences(facts, other)
        assert len(changed) == 1 or exchanged(facts, other)
        told[changed[0] if len(changed) == 1 else "exchange"] += 1
    assert told.keys() >= {"color", "shape", "size", "relation", "count", "background", "exchange"}
    assert min(told[name] for name in ("color", "count", "relation", "background", "exchange")) > 50
    assert ("pattern" in told) == (split == "heldout"), "where nothing else can be changed"


@pytest.mark.parametrize("pair", sorted(HELDOUT_PAIRS))
@pytest.mark.parametrize("pattern", [None, "dotted"])
def test_a_held_out_thing_that_is_told_by_nothing_else_gets_a_pattern(
    pair: tuple[str, str], pattern: str | None
) -> None:
    facts = Facts((Thing(*pair, pattern),))
    for seed in range(4):
        other = vary(facts, np.random.default_rng(seed), "heldout")
        assert differences(facts, other) == ["pattern"]
        assert other.things[0].pattern is not None


def test_every_number_is_reached_and_no_other() -> None:
    facts = Facts((Thing("red", "square"),), count=3)
    found = {vary(facts, np.random.default_rng(seed)) for seed in range(200)}
    assert {other.count for other in found} == {2, 3, 4, 5}
    known = {shape for shape in SHAPES if ("red", shape) not in HELDOUT_PAIRS}
    assert {other.things[0].shape for other in found if other.things[0].color == "red"} == known
    assert facts not in found


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_groups_begin_with_the_scene_that_is_drawn_alone(split: Split) -> None:
    alone, groups = ShapesDataset(16, 3, split), ShapesDataset(16, 3, split, variations=4)
    for index in range(80):
        facts, text, scene = groups.scene(index)
        first = alone.scene(index - index % 4)
        if index % 4 == 0:
            assert (facts, text, scene) == first
            assert torch.equal(groups[index].image, alone[index].image)
        else:
            assert len(differences(first[0], facts)) == 1 or exchanged(first[0], facts)
            assert is_heldout(facts) == (split == "heldout")
        assert groups[index].key == alone[index].key


def test_one_variation_is_as_it_was_before_there_were_any() -> None:
    """The captions of these indices, as they are in published runs."""
    one, plain = ShapesDataset(16, 7, variations=1), ShapesDataset(16, 7)
    for index in range(12):
        assert one.scene(index) == plain.scene(index)
        assert torch.equal(one[index].image, plain[index].image)
    rng = plain._rng(5, 0)
    assert sample_facts(rng, "train", None) == plain.scene(5)[0]


def test_worker_processes_and_order_do_not_matter() -> None:
    dataset = ShapesDataset(16, seed=3, variations=3)
    runs = []
    for workers in (0, 2):
        sampler = StepSampler(None, batch_size=4, num_steps=3, start_step=0)
        runs.append(list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers)))
    for alone, shared in zip(*runs, strict=True):
        assert alone["caption"] == shared["caption"]
        assert torch.equal(alone["image"], shared["image"])
    backwards = [dataset.scene(index)[1] for index in reversed(range(12))][::-1]
    assert [text for batch in runs[0] for text in batch["caption"]] == backwards


def test_a_category_is_kept() -> None:
    dataset = ShapesDataset(16, category="relation", variations=4)
    assert {dataset.scene(index)[0].category for index in range(24)} == {"relation"}


def test_a_configuration_reaches_the_data_and_nonsense_is_refused() -> None:
    source = data_source(DataConfig("shapes", variations=5))
    assert isinstance(source, ShapesDataset)
    assert source.variations == 5
    with pytest.raises(ConfigError, match="data.variations 0 must be positive"):
        DataConfig("shapes", variations=0)
    with pytest.raises(ConfigError, match="data.variations 2 is of kind shapes"):
        DataConfig("folder", "pictures", variations=2)
    with pytest.raises(ValueError, match="variations is 0"):
        ShapesDataset(16, variations=0)
