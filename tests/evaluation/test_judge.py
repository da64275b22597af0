"""Verdicts on objects that are put together here: no picture, no detector."""

from __future__ import annotations

from typing import Any

import pytest

from imagen.data.shapes.language import parse
from imagen.evaluation.detector import Detection, Found
from imagen.evaluation.judge import check


def found(
    color: str | None, shape: str | None, pattern: str | None = "plain", y: float = 0.5, radius: float = 0.1
) -> Found:
    return Found(color, shape, pattern, (0.5, y), radius, 0.0, (0.0, 0.0, 0.0))


STAR, RING = found("red", "star", y=0.25), found("blue", "ring", y=0.75)
RIGHT = {"count": True, "color": True, "shape": True, "pattern": True}


@pytest.mark.parametrize(
    ("text", "objects", "wrong"),
    [
        ("a red star", (STAR,), set()),
        ("a red star", (found("blue", "star"),), {"color"}),
        ("a red star", (found(None, "star"),), {"color"}),
        ("a red star", (found("red", "ring"),), {"shape"}),
        ("a red star", (found("red", "star", "dotted"),), {"pattern"}),
        ("a dotted red star", (found("red", "star", "dotted"),), set()),
        ("a dotted red star", (STAR,), {"pattern"}),
        ("a dotted red star", (found("red", "star", None),), set()),  # at 64 px nobody can tell
        ("a red star", (), {"count", "color", "shape", "pattern"}),
        ("a small red star", (STAR,), set()),
        ("a large red star", (STAR,), {"size"}),
        ("a large red star", (found("red", "star", radius=0.1401),), set()),
        ("a small red star", (found("red", "star", radius=0.14),), set()),
        ("a red star", (STAR, STAR), {"count"}),
        ("a red star", (STAR, RING), {"count", "color", "shape"}),
        ("two red stars", (STAR, STAR), set()),
        ("two red stars", (STAR, RING), {"color", "shape"}),
        ("two red stars", (found("red", "ring"), STAR), {"shape"}),
        ("two red stars", (STAR,), {"count"}),
        ("three red stars", (STAR, STAR, found("pink", "star")), {"color"}),
        ("a red star on a gray background", (STAR,), set()),
        ("a red star on a navy background", (STAR,), {"background"}),
        ("a red star above a blue ring", (STAR, RING), set()),
        ("a red star above a blue ring", (RING, STAR), set()),
        ("a blue ring below a red star", (STAR, RING), set()),
        ("a red star below a blue ring", (STAR, RING), {"relation"}),
        ("a red star above a blue ring", (STAR,), {"count", "color", "shape", "pattern", "relation"}),
        ("a red star above a blue ring", (STAR, RING, found("pink", "cross")), {"count"}),
        ("a red star above a blue ring", (found("pink", "cross"), *[STAR] * 4, RING), {"count"}),
        ("a red star above a blue ring", (STAR, found("blue", "cross", y=0.75)), {"shape"}),
        ("a red star above a large blue ring", (STAR, RING), {"size"}),
        ("a large red star above a blue ring", (STAR, RING), {"size"}),
    ],
)
def test_every_fact_is_judged_by_itself(text: str, objects: Any, wrong: set[str]) -> None:
    verdict = check(Detection("gray", objects), parse(text))
    assert {name for name, right in verdict.facts.items() if not right} == wrong
    assert verdict.ok == (not wrong)
    facts = parse(text)
    stated = {"count", "color", "shape"}
    stated |= {"pattern"} if any(one.pattern for one in objects) or not objects else set()
    stated |= {"size"} if any(thing.size for thing in facts.things) else set()
    stated |= {name for name in ("relation", "background") if getattr(facts, name) is not None}
    assert verdict.facts.keys() == stated


def test_the_reading_with_most_facts_right_is_taken() -> None:
    """Read the other way round the relation would hold, and nothing else."""
    upside = (found("red", "star", y=0.75), found("blue", "ring", y=0.25))
    verdict = check(Detection("gray", upside), parse("a red star above a blue ring"))
    assert verdict.facts == {**RIGHT, "relation": False}
    alike = (found("red", "star", y=0.75), found("red", "ring", y=0.25))
    verdict = check(Detection("gray", alike), parse("a red star above a red star"))
    assert verdict.facts == {**RIGHT, "shape": False, "relation": True}
