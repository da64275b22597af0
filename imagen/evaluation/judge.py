"""Whether a picture shows what its caption says: the detector's objects against the facts, one verdict a fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagen.evaluation.detector import Detection, Found, detect

if TYPE_CHECKING:
    from imagen.data.shapes.language import Facts, Thing

FACT_NAMES = ("count", "color", "shape", "size", "pattern", "relation", "background")


@dataclass(frozen=True)
class Verdict:
    """``facts`` maps every fact that the caption states (of :data:`FACT_NAMES`) to whether the picture shows it."""

    facts: dict[str, bool]
    detection: Detection

    @property
    def ok(self) -> bool:
        """Every fact holds."""
        return all(self.facts.values())


def _relation_holds(first: Found, second: Found, relation: str) -> bool:
    """The named axis separates the centres in the named direction, and by more than the other axis does (y is down)."""
    right, down = first.center[0] - second.center[0], first.center[1] - second.center[1]
    along, across = {
        "above": (-down, right),
        "below": (down, right),
        "to the left of": (-right, down),
        "to the right of": (right, down),
    }[relation]
    return along > abs(across)


def _thing_verdicts(pairs: Sequence[tuple[Found | None, Thing]]) -> dict[str, bool]:
    """Colour, shape and, where it applies, size and pattern of objects against what they should be (None: missing)."""
    verdicts: dict[str, bool] = {}
    for found, thing in pairs:
        wanted = {"color": thing.color, "shape": thing.shape}
        if thing.size is not None:
            wanted["size"] = thing.size
        if found is None or found.pattern is not None:
            wanted["pattern"] = thing.pattern or "plain"
        for name, value in wanted.items():
            right = found is not None and getattr(found, name) == value
            verdicts[name] = verdicts.get(name, True) and right
    return verdicts


def _relation_verdicts(objects: Sequence[Found], facts: Facts, relation: str) -> dict[str, bool]:
    """The best reading of which object is which thing."""
    slots: list[Found | None] = list(objects[:6])
    slots += [None] * (2 - len(slots))
    readings = []
    for first, second in permutations(slots, 2):
        holds = first is not None and second is not None and _relation_holds(first, second, relation)
        readings.append({**_thing_verdicts([*zip((first, second), facts.things, strict=True)]), "relation": holds})
    return max(readings, key=lambda verdicts: sum(verdicts.values()))


def check(picture: Image.Image | NDArray[np.generic] | Detection, facts: Facts) -> Verdict:
    """Judge a picture (or what :func:`detect` found in it) against a caption's facts.

    The number of objects must be exact; every object has the named colour and shape, the named size, and the named
    pattern (none named: plain; not judged at 64 px); the relation and a named background hold. With the wrong number of
    objects the other facts are judged on the objects that are there, for the per-fact shares.

    Raises:
        ValueError: not a square picture of 64 px or more.
    """
    detection = picture if isinstance(picture, Detection) else detect(picture)
    objects = detection.objects
    wanted = facts.count if facts.relation is None else len(facts.things)
    verdicts = {"count": len(objects) == wanted}
    if facts.relation is None:
        thing = facts.things[0]
        verdicts |= _thing_verdicts([(found, thing) for found in objects] or [(None, thing)])
    else:
        verdicts |= _relation_verdicts(objects, facts, facts.relation)
    if facts.background is not None:
        verdicts["background"] = detection.background == facts.background
    return Verdict(verdicts, detection)
