"""Where things stand: from the facts of a caption to a scene of placed objects.

Positions are in units of the picture's side, x to the right and y **down**, both in [0, 1]; an object's radius is that
of its bounding circle. Inside what the facts demand, positions are uniform: whole layouts are drawn and rejected, and
after :data:`TRIES` rejections a fixed layout that always fits is used, so :func:`place` terminates.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

import numpy as np

from .language import BACKGROUNDS, COLORS, Facts, Rgb, allowed_backgrounds, choice

MARGIN = 0.02  # least distance of a bounding circle from the picture's border
GAP = 0.03  # least distance between two bounding circles: two pixels at 64 px
SEPARATION = 0.2  # least distance of two centres along the axis a relation names
DOMINANCE = 1.2  # ... and it is this many times their distance along the other axis
TRIES = 200

# Radii by the caption's size word; None is "says nothing". In a relation none is larger than RELATION_RADIUS.
RADII: dict[str | None, tuple[float, float]] = {"small": (0.085, 0.115), "large": (0.17, 0.23), None: (0.085, 0.23)}
RELATION_RADIUS = 0.2
COUNTING_RADII = (0.085, 0.13)

Point = tuple[float, float]
# relation -> (axis it names, sign of first minus second along it); y points down
_DIRECTION = {"above": (1, -1), "below": (1, 1), "to the left of": (0, -1), "to the right of": (0, 1)}


@dataclass(frozen=True)
class Placed:
    """One object: centre and radius in units of the picture's side, colour in 0-255."""

    x: float
    y: float
    radius: float
    rgb: Rgb
    shape: str
    pattern: str | None = None


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn at some resolution; the objects stand in the order of the facts' things."""

    objects: tuple[Placed, ...]
    background: Rgb


def place(facts: Facts, rng: np.random.Generator) -> Scene:
    """Draw sizes, positions and, where the facts name none, a background on which every object can be seen.

    Every object lies inside the picture by :data:`MARGIN`, no two are nearer than :data:`GAP`. In a relation the named
    axis separates the centres by at least :data:`SEPARATION` and by :data:`DOMINANCE` times what the other axis does,
    so that no picture is a judgement call. Counted objects share one radius.
    """
    if facts.relation is not None:
        radii = [_radius(rng, thing.size, RELATION_RADIUS) for thing in facts.things]
        centres = _related(rng, radii, facts.relation)
    elif facts.count > 1:
        radii = [float(rng.uniform(*COUNTING_RADII))] * facts.count
        centres = _scattered(rng, radii)
    else:
        radii = [_radius(rng, facts.things[0].size)]
        centres = _uniform(rng, radii)
    background = facts.background or choice(rng, allowed_backgrounds(facts))
    objects = tuple(
        Placed(x, y, radius, COLORS[thing.color], thing.shape, thing.pattern)
        for (x, y), radius, thing in zip(centres, radii, facts.things * facts.count, strict=True)
    )
    return Scene(objects, BACKGROUNDS[background])


def _radius(rng: np.random.Generator, size: str | None, largest: float = 1.0) -> float:
    low, high = RADII[size]
    return float(rng.uniform(low, min(high, largest)))


def _uniform(rng: np.random.Generator, radii: list[float]) -> list[Point]:
    """Centres drawn independently, each inside the picture."""
    limits = [MARGIN + radius for radius in radii]
    return [(float(rng.uniform(low, 1 - low)), float(rng.uniform(low, 1 - low))) for low in limits]


def _apart(centres: list[Point], radii: list[float]) -> bool:
    return all(
        hypot(ax - bx, ay - by) >= radii[i] + radii[j] + GAP
        for i, (ax, ay) in enumerate(centres)
        for j, (bx, by) in enumerate(centres[:i])
    )


def _related(rng: np.random.Generator, radii: list[float], relation: str) -> list[Point]:
    axis, sign = _DIRECTION[relation]
    for _ in range(TRIES):
        first, second = _uniform(rng, radii)
        along, across = first[axis] - second[axis], first[1 - axis] - second[1 - axis]
        if abs(along) >= max(SEPARATION, DOMINANCE * abs(across)) and _apart([first, second], radii):
            # the layout reversed along the axis is as likely, so half of the draws need not be thrown away
            return [first, second] if along * sign > 0 else [_mirror(first, axis), _mirror(second, axis)]
    ends = [MARGIN + radii[0], 1 - MARGIN - radii[1]]
    centres = [(0.5, end) if axis == 1 else (end, 0.5) for end in ends]
    return centres if sign < 0 else [_mirror(centre, axis) for centre in centres]


def _mirror(centre: Point, axis: int) -> Point:
    x, y = centre
    return (1 - x, y) if axis == 0 else (x, 1 - y)


def _scattered(rng: np.random.Generator, radii: list[float]) -> list[Point]:
    for _ in range(TRIES):
        centres = _uniform(rng, radii)
        if _apart(centres, radii):
            return centres
    low = MARGIN + max(radii)  # four corners and the middle: any two are at least 0.49 apart
    high = 1 - low
    return [(low, low), (high, high), (low, high), (high, low), (0.5, 0.5)][: len(radii)]
