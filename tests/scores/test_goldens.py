"""Distances of drawn features beside what torch-fidelity and clean-fid make of them (benchmarks/other_scores.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagen.scores.frechet import Moments, frechet_distance
from imagen.scores.kernel import kernel_distance
from imagen.scores.manifold import manifold
from tests.scores.drawn import NEIGHBOURS, SETS, drawn_features

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "distances.json").read_text(encoding="utf-8"))
OTHERS = ("torch-fidelity", "clean-fid")


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kind", SETS)
def test_frechet_distance_is_theirs(kind: str, other: str) -> None:
    real, generated = drawn_features(kind)
    found = frechet_distance(Moments.of(generated), Moments.of(real))
    # The root of singular covariances ("flat") is found to half the digits by clean-fid's way.
    assert found == pytest.approx(GOLDENS[kind]["frechet"][other], rel=1e-5 if kind == "flat" else 1e-8)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kind", SETS)
def test_kernel_distance_is_theirs(kind: str, other: str) -> None:
    real, generated = drawn_features(kind)
    assert kernel_distance(generated, real) == pytest.approx(GOLDENS[kind]["kernel"][other], rel=1e-9)


@pytest.mark.parametrize("k", NEIGHBOURS)
@pytest.mark.parametrize("kind", SETS)
def test_precision_and_recall_are_theirs(kind: str, k: int) -> None:
    real, generated = drawn_features(kind)
    found, expected = manifold(generated, real, k), GOLDENS[kind]["manifold"][str(k)]
    assert found.precision == pytest.approx(expected["precision"], abs=1e-6)
    assert found.recall == pytest.approx(expected["recall"], abs=1e-6)
