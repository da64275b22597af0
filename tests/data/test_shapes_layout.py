"""Where objects stand: what every scene must satisfy, over thousands of them."""

from __future__ import annotations

from math import hypot

import numpy as np
import pytest

from imagen.data.shapes.language import BACKGROUNDS, COLORS, RELATIONS, Facts, Thing, caption, parse, sample_facts
from imagen.data.shapes.layout import Placed, Scene, place

HOLDS = {
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
    "to the left of": lambda a, b: b.x - a.x,
    "to the right of": lambda a, b: a.x - b.x,
}


def check(facts: Facts, scene: Scene) -> None:
    objects = scene.objects
    for i, a in enumerate(objects):
        assert min(a.x, a.y, 1 - a.x, 1 - a.y) - a.radius >= 0.02 - 1e-9, "an object leaves the picture"
        for b in objects[:i]:
            assert hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius >= 0.03 - 1e-9, "two objects touch"
    if facts.relation is not None:
        first, second = objects
        along = HOLDS[facts.relation](first, second)
        apart = sorted([abs(first.x - second.x), abs(first.y - second.y)])
        assert along >= 0.2
        assert along == apart[1] >= 1.2 * apart[0], "the other axis separates as much"
        assert max(first.radius, second.radius) <= 0.2
    if facts.count > 1:
        assert len({(o.radius, o.rgb, o.shape, o.pattern) for o in objects}) == 1
        assert 0.085 <= objects[0].radius <= 0.13
    assert len(objects) == (2 if facts.relation else facts.count)
    names = [thing for thing in facts.things for _ in range(facts.count)]
    for thing, drawn in zip(names, objects, strict=True):
        assert (COLORS[thing.color], thing.shape, thing.pattern) == (drawn.rgb, drawn.shape, drawn.pattern)
        low, high = {"small": (0.085, 0.115), "large": (0.17, 0.23), None: (0.085, 0.23)}[thing.size]
        assert low <= drawn.radius <= high
        background = next(name for name, rgb in BACKGROUNDS.items() if rgb == scene.background)
        assert (thing.color, background) not in {("black", "navy"), ("white", "cream")}
        assert facts.background in (None, background)


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("category", ["single", "relation", "counting", "background", None])
def test_every_scene_shows_what_its_caption_says(split, category) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(17)
    for _ in range(600):
        facts = sample_facts(rng, split, category)
        text = caption(facts, rng)
        scene = place(facts, rng)
        check(facts, scene)
        told = parse(text)  # told from the other side ("b below a"), the objects change places
        if told.things != facts.things:
            scene = Scene(scene.objects[::-1], scene.background)
        check(told, scene)


class Stubborn:
    """Draws the same share of every range: random layouts then always collide."""

    def __init__(self, share: float) -> None:
        self.share = share

    def uniform(self, low: float, high: float) -> float:
        return low + self.share * (high - low)

    def integers(self, *_: int) -> int:
        return 0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_placing_ends_where_chance_never_fits(share: float) -> None:
    red, blue = Thing("red", "star", size="large"), Thing("blue", "ring")
    for relation in RELATIONS:
        facts = Facts((red, blue), relation=relation)
        check(facts, place(facts, Stubborn(share)))  # type: ignore[arg-type]
    for count in (2, 3, 4, 5):
        facts = Facts((blue,), count=count)
        check(facts, place(facts, Stubborn(share)))  # type: ignore[arg-type]


def test_positions_vary_widely() -> None:
    rng = np.random.default_rng(1)
    for facts in (
        Facts((Thing("red", "circle", size="small"),)),
        Facts((Thing("red", "circle"), Thing("blue", "star")), relation="above"),
        Facts((Thing("red", "circle"),), count=3),
    ):
        centres = [(o.x, o.y) for _ in range(500) for o in place(facts, rng).objects]
        counts = np.histogram2d(*np.transpose(centres), bins=3, range=[[0.1, 0.9]] * 2)[0]
        assert counts.min() > 0.03 * counts.sum(), "a ninth of the picture is hardly ever used"


def test_what_is_allowed_occurs() -> None:
    """Each bound is come near to: objects at the border, near one another, hardly more along than across."""
    rng = np.random.default_rng(4)
    small = Thing("red", "circle", size="small")
    singles = [place(Facts((small,)), rng).objects[0] for _ in range(800)]
    for coordinate in ("x", "y"):
        places = [(getattr(one, coordinate), one.radius) for one in singles]
        assert min(at - radius for at, radius in places) < 0.03
        assert max(at + radius for at, radius in places) > 0.97
    for size, low, high in (("small", 0.085, 0.115), ("large", 0.17, 0.23), (None, 0.085, 0.23)):
        radii = [place(Facts((Thing("red", "circle", size=size),)), rng).objects[0].radius for _ in range(200)]
        assert min(radii) < low + 0.02 * (high - low) + 0.001
        assert max(radii) > high - 0.02 * (high - low) - 0.001
    counted = [place(Facts((small,), count=2), rng).objects for _ in range(800)]
    assert min(hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius for a, b in counted) < 0.04
    assert max(a.radius for a, _ in counted) > 0.128
    pairs = [place(Facts((small, Thing("blue", "star")), "below"), rng).objects for _ in range(800)]
    assert min(a.y - b.y for a, b in pairs) < 0.22
    assert min((a.y - b.y) / (abs(a.x - b.x) + 1e-9) for a, b in pairs) < 1.25
    assert max(b.radius for _, b in pairs) > 0.195


def test_both_objects_of_a_relation_are_treated_alike() -> None:
    """Mirrored draws are as likely: the first object's place for "above" is the second's for "below"."""
    rng = np.random.default_rng(2)
    pair = (Thing("red", "circle"), Thing("blue", "star"))
    means = {
        relation: np.mean([[o.y for o in place(Facts(pair, relation), rng).objects] for _ in range(800)], 0)
        for relation in ("above", "below")
    }
    assert means["above"] == pytest.approx(1 - means["below"], abs=0.02)
    assert means["above"].sum() == pytest.approx(1, abs=0.03)


def test_an_unnamed_background_is_any_allowed_one() -> None:
    rng = np.random.default_rng(3)
    seen = {place(Facts((Thing("black", "ring"),)), rng).background for _ in range(200)}
    assert seen == set(BACKGROUNDS.values()) - {BACKGROUNDS["navy"]}


def test_placed_is_a_value() -> None:
    assert Placed(0.5, 0.5, 0.1, (1, 2, 3), "star") == Placed(0.5, 0.5, 0.1, (1, 2, 3), "star", None)
