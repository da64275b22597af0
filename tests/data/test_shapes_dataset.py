"""The shapes world as a data set: what an index decides, what is held out, and how windows and low-res pictures lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from imagen.data import ShapesDataset
from imagen.data.order import StepSampler
from imagen.data.shapes.language import COLORS, HELDOUT_PAIRS, SHAPES, Facts, Thing, is_heldout, parse
from imagen.data.shapes.layout import place
from imagen.data.shapes.render import render
from imagen.data.sources import collate


def same(a, b) -> bool:  # type: ignore[no-untyped-def]
    lowres = (a.lowres is None and b.lowres is None) or torch.equal(a.lowres, b.lowres)
    return a.key == b.key and a.caption == b.caption and torch.equal(a.image, b.image) and lowres


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    first, again, other = ShapesDataset(16, seed=1), ShapesDataset(16, seed=1), ShapesDataset(16, seed=2)
    backwards = {index: again[index] for index in reversed(range(20))}
    assert all(same(first[index], backwards[index]) for index in range(20))
    assert sum(first[i].caption == other[i].caption for i in range(50)) < 10
    assert len({first[i].caption for i in range(200)}) > 150
    assert same(first[10**12], again[10**12])
    assert first.length is None


def test_worker_processes_do_not_matter() -> None:
    dataset = ShapesDataset(16, seed=3, crop=8, lowres_size=8)
    runs = []
    for workers in (0, 2):
        sampler = StepSampler(None, batch_size=4, num_steps=4, start_step=1)
        runs.append(list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers)))
    for alone, shared in zip(*runs, strict=True):
        assert alone["key"] == shared["key"]
        assert alone["caption"] == shared["caption"]
        assert torch.equal(alone["image"], shared["image"])
        assert torch.equal(alone["lowres"], shared["lowres"])
    assert runs[0][0]["key"][0] == "shapes/train/3/4"


def test_the_scene_does_not_depend_on_the_stage() -> None:
    stages = [
        ShapesDataset(64, seed=5),
        ShapesDataset(256, seed=5, lowres_size=64),
        ShapesDataset(256, seed=5, lowres_size=64, crop=128),
        ShapesDataset(1024, seed=5, lowres_size=256, crop=256),
    ]
    for index in range(10):
        facts = [stage.scene(index) for stage in stages]
        assert all(other == facts[0] for other in facts)
        assert len({stage[index].caption for stage in stages}) == 1


def test_values_and_shapes() -> None:
    assert ShapesDataset(8, lowres_size=1)[0].lowres.shape == (3, 1, 1)  # type: ignore[union-attr]
    for size, crop, lowres, shape in ((24, None, None, 24), (32, 16, 8, 16), (32, 16, None, 16)):
        sample = ShapesDataset(size, crop=crop, lowres_size=lowres)[0]
        assert sample.image.shape == (3, shape, shape)
        assert sample.image.dtype == torch.float32
        assert -1 <= sample.image.min() < sample.image.max() <= 1
        assert sample.lowres is None if lowres is None else sample.lowres.shape == (3, 4, 4)


@pytest.mark.parametrize(("size", "crop", "lowres"), [(1024, 256, 256), (256, 128, 64), (256, 256, 64)])
def test_lowres_and_crop_are_windows_of_the_same_picture(size: int, crop: int, lowres: int) -> None:
    dataset = ShapesDataset(size, seed=7, crop=crop, lowres_size=lowres)
    scale = size // lowres
    for index in range(6):
        _, _, scene = dataset.scene(index)
        x0, y0, x1, _ = dataset.window(index, scene)
        left, top = round(x0 * lowres), round(y0 * lowres)
        assert (left / lowres, top / lowres) == (x0, y0), "the corner is not on the low-res grid"
        assert x1 - x0 == crop / size
        sample = dataset[index]
        assert sample.lowres is not None
        for tensor, side, factor in ((sample.lowres, lowres, 1), (sample.image, size, scale)):
            wide = crop * lowres // size * factor
            whole = render(scene, side)
            rows, columns = (slice(corner * factor, corner * factor + wide) for corner in (top, left))
            expected = torch.from_numpy(whole[rows, columns].transpose(2, 0, 1) * 2 - 1)
            assert torch.allclose(tensor, expected, atol=1e-6)


def test_crops_aim_at_objects_and_still_vary() -> None:
    dataset = ShapesDataset(1024, seed=9, crop=256, lowres_size=256)
    lows = [dataset[i].lowres for i in range(60)]
    busy = np.mean([float(low.amax((1, 2)).sub(low.amin((1, 2))).max()) > 0.1 for low in lows])
    assert busy > 0.85
    corners = np.array([dataset.window(i, dataset.scene(i)[2])[:2] for i in range(500)])
    assert corners.min() == 0
    assert corners.max() == 0.75
    assert (np.histogram2d(*corners.T, bins=3)[0] > 5).all()


def test_every_object_is_aimed_at_and_stands_anywhere_in_its_window() -> None:
    dataset = ShapesDataset(512, seed=3, crop=128, category="relation")
    seen, places = [], []
    for index in range(300):
        objects = dataset.scene(index)[2].objects
        x0, y0, x1, y1 = dataset.window(index, dataset.scene(index)[2])
        inside = [x0 <= thing.x <= x1 and y0 <= thing.y <= y1 for thing in objects]
        seen.append(inside)
        places += [((o.x - x0) * 4, (o.y - y0) * 4) for o, here in zip(objects, inside, strict=True) if here]
    first, second = np.sum(seen, axis=0)
    assert min(first, second) > 0.7 * max(first, second) > 40, "the second thing as often as the first"
    assert np.mean(places, axis=0) == pytest.approx((0.5, 0.5), abs=0.06)


def test_patterns_have_one_phase_in_all_crops_that_must_invent_them() -> None:
    dataset = ShapesDataset(256, seed=9, crop=64, lowres_size=64)
    corners = np.array([dataset.window(i, dataset.scene(i)[2])[:2] for i in range(200)]) * 8
    assert np.array_equal(corners, corners.round())
    assert len(np.unique(corners)) == 7


def test_the_lowres_picture_keeps_the_pattern_secret() -> None:
    rng = np.random.default_rng(0)
    scene = place(Facts((Thing("red", "circle", "striped", "large"),)), rng)
    striped, dotted = (
        scene,
        type(scene)((scene.objects[0].__class__(**{**vars(scene.objects[0]), "pattern": "dotted"}),), scene.background),
    )
    assert np.array_equal(render(striped, 64), render(dotted, 64))
    reduced = [render(s, 256).reshape(64, 4, 64, 4, 3).mean((1, 3)) for s in (striped, dotted)]
    assert np.abs(reduced[0] - reduced[1]).max() > 0.02  # the large picture made small would tell


@pytest.mark.parametrize("seed", [0, 123])
def test_nothing_held_out_is_ever_seen_in_training(seed: int) -> None:
    train, heldout = (ShapesDataset(8, seed=seed, split=split) for split in ("train", "heldout"))
    seen_pairs, seen_sets = set(), set()
    for index in range(3000):
        told = parse(train.scene(index)[1])
        pairs = [(thing.color, thing.shape) for thing in told.things]
        seen_pairs.update(pairs)
        seen_sets.add(frozenset(pairs))
        assert not is_heldout(told)
    assert seen_pairs == {(c, s) for c in COLORS for s in SHAPES} - HELDOUT_PAIRS
    for index in range(600):
        told = parse(heldout.scene(index)[1])
        pairs = frozenset((thing.color, thing.shape) for thing in told.things)
        assert pairs & HELDOUT_PAIRS or pairs not in seen_sets


def test_a_tenth_is_held_out_whatever_the_order_and_the_relation() -> None:
    assert len(HELDOUT_PAIRS) * 10 == len(COLORS) * len(SHAPES)
    rng = np.random.default_rng(0)
    pairs = sorted({(c, s) for c in COLORS for s in SHAPES} - HELDOUT_PAIRS)
    verdicts = []
    for _ in range(3000):
        a, b = (Thing(*pairs[i]) for i in rng.choice(len(pairs), 2, replace=False))
        verdict = is_heldout(Facts((a, b), "above"))
        assert verdict == is_heldout(Facts((b, a), "to the left of", background="gray"))
        verdicts.append(verdict)
    assert np.mean(verdicts) == pytest.approx(0.1, abs=0.02)


def test_categories() -> None:
    for category in ("single", "relation", "counting", "background"):
        dataset = ShapesDataset(8, split="heldout", category=category)
        assert {dataset.scene(i)[0].category for i in range(30)} == {category}
    mixed = {ShapesDataset(8).scene(i)[0].category for i in range(100)}
    assert mixed == {"single", "relation", "counting", "background"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 8, "seed": -1}, "seed is -1"),
        ({"size": 8, "split": "test"}, "'test'"),
        ({"size": 8, "lowres_size": 3}, "lowres_size is 3"),
        ({"size": 8, "lowres_size": 0}, "lowres_size is 0"),
        ({"size": 8, "lowres_size": 16}, "lowres_size is 16"),
        ({"size": 8, "crop": 9}, "crop is 9"),
        ({"size": 8, "crop": 0}, "crop is 0"),
        ({"size": 256, "lowres_size": 64, "crop": 100}, "multiple of 32"),
        ({"size": 1024, "lowres_size": 256, "crop": 254}, "multiple of 4"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesDataset(**options)


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(ValueError, match="index is -1"):
        ShapesDataset(8)[-1]
