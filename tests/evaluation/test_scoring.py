"""Scores of sets: each is the statistic of the features by hand, under its own name, whole, by seeds, and as floor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from imagen.evaluation import scoring
from imagen.evaluation.pictures import PictureSet, Shown
from imagen.evaluation.scoring import Features, called, floor, read_features, scores_of, scores_of_seeds, set_scores
from imagen.scores.frechet import Moments, frechet_distance
from imagen.scores.kernel import kernel_distance
from imagen.scores.manifold import manifold
from tests.evaluation.coloured import Colours, plain

ALL = ("fd", "kd", "manifold", "clip")


def features(rows: int, seed: int, dim: int = 4) -> Any:
    return np.random.default_rng(seed).normal(seed % 2, 1, (rows, dim))


def by_hand(x: Any, y: Any, k: int = 3) -> dict[str, float]:
    return {
        "fd": frechet_distance(Moments.of(x), Moments.of(y)), "kd": kernel_distance(x, y), **manifold(x, y, k).to_json()
    }  # fmt: skip


@pytest.mark.parametrize(("metric", "label", "name"), [
    ("fd", "shapes-clip", "fd[shapes-clip]"), ("kd", "dinov2", "kd[dinov2]"), ("recall", "x", "recall[x]"),
    ("fd", "fid", "fid"), ("kd", "fid", "kid"), ("fd", "clean-fid", "clean-fid"), ("kd", "clean-fid", "clean-kid"),
    ("precision", "fid", "fid-precision"), ("fd", "my-fid", "fd[my-fid]"), ("fd", "inception", "fd[inception]"),
])  # fmt: skip
def test_papers_names_are_the_standard_inceptions_alone(metric: str, label: str, name: str) -> None:
    assert called(metric, label) == name


def test_every_number_is_the_statistic_by_hand() -> None:
    x, y = Features("x", {"a": features(30, 0), "fid": features(30, 2, 6)}, np.arange(30.0)), {}
    y = {"a": features(40, 1), "fid": features(40, 3, 6)}
    found = scores_of(x, y, ALL, 3, 20)
    for label, own in x.of.items():
        for metric, value in by_hand(own, y[label]).items():
            estimate = found[called(metric, label)]
            assert estimate.value == pytest.approx(value, rel=1e-9, abs=1e-12)
            assert estimate.low < estimate.value < estimate.high or metric in ("precision", "recall")
    assert found["clip"].value == 14.5
    assert scores_of(x, y, ["clip"], 3, 20).keys() == {"clip"}
    assert len(found) == 13


def test_more_rows_than_an_interval_is_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value is of all, whatever their order, and the interval about as wide as that of all."""
    x, y = features(400, 0), features(300, 1)
    whole = set_scores("fd", x, y, 3, 100)["fd"]
    monkeypatch.setattr(scoring, "MOST", 100)
    for metric in ("fd", "kd", "manifold"):
        found = set_scores(metric, x, y, 3, 20)
        assert {name: one.value for name, one in found.items()} == pytest.approx(
            {name: value for name, value in by_hand(x, y).items() if name in found}, rel=1e-9, abs=1e-12
        )
    part = set_scores("fd", x, y, 3, 100)["fd"]
    assert 0.5 < (part.high - part.low) / (whole.high - whole.low) < 2
    drawn = scoring.few(np.arange(400.0)[:, None])
    assert drawn.shape == (100, 1)
    assert len(np.unique(drawn)) == 100
    assert 150 < drawn.mean() < 250, "of all, not the first ones"
    assert np.array_equal(scoring.few(y[:100]), y[:100])


@pytest.mark.parametrize("rows", [(60, 1000), (1000, 60)])
def test_a_small_set_is_not_told_better_by_a_large_one_beside_it(
    rows: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = features(rows[0], 0), features(rows[1], 1)
    whole = set_scores("fd", x, y, 3, 100)["fd"]
    monkeypatch.setattr(scoring, "MOST", 100)
    part = set_scores("fd", x, y, 3, 100)["fd"]
    assert 0.7 < (part.high - part.low) / (whole.high - whole.low) < 2


def test_seeds_are_every_nth_picture_and_a_prompt_that_lacks_some_is_left_out() -> None:
    x = Features("x", {"a": features(11, 0)}, np.arange(11.0), per_prompt=3)
    assert [rows.tolist() for rows in x.seeds()] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert Features("x", {"a": features(5, 0)}).seeds() == []
    assert Features("x", {"a": features(2, 0)}, per_prompt=3).seeds() == []


def test_scores_over_seeds_are_means_of_whole_seeds() -> None:
    from scipy import stats

    x, y = Features("x", {"a": features(36, 0)}, np.arange(36.0), per_prompt=3), {"a": features(20, 1)}
    found = scores_of_seeds(x, y, ALL, 3)
    each = [by_hand(x.of["a"][seed::3], y["a"]) for seed in range(3)]
    for metric in each[0]:
        values = [one[metric] for one in each]
        estimate = found[f"{metric}[a]"]
        assert estimate.value == pytest.approx(np.mean(values))
        if np.ptp(values):
            low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
            assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert found["clip"].value == pytest.approx(np.mean([16.5, 17.5, 18.5]))


def test_the_floor_is_truth_beside_other_truth(capsys: pytest.CaptureFixture[str]) -> None:
    y = {"a": features(50, 1)}
    order = np.random.default_rng(0).permutation(50)
    for count, size in ((10, 10), (25, 25), (1000, 25)):
        found = floor(y, count, ALL, 3, 20)
        assert "clip" not in found
        for metric, value in by_hand(y["a"][order[:size]], y["a"][order[size:]]).items():
            assert found[f"{metric}[a]"].value == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert floor(y, 7, ALL, 3, 20) == {}
    assert floor({"a": y["a"][:15]}, 10, ALL, 3, 20) == {}
    assert "truth beside truth is left out: it needs 8 pictures" in capsys.readouterr().err
    assert floor(y, 4, ["fd", "kd"], 3, 20).keys() == {"fd[a]", "kd[a]"}
    assert floor(y, 3, ["fd"], 3, 20) == {}
    assert floor(y, 3, ["clip"], 3, 20) == {}


def test_pictures_are_looked_at_once_with_all_networks() -> None:
    made = 0

    def read() -> Any:
        nonlocal made
        for number, color in enumerate(("red", "green", "blue", "red", "red")):
            made += 1
            yield Shown(f"{number}", plain(color), "red" if number < 4 else "a thing")

    networks: Any = [
        SimpleNamespace(
            label=label, features=lambda some, size, at=at: np.array([one.getpixel((0, 0))[at:] for one in some])
        )
        for at, label in enumerate(("all", "two"))
    ]
    encoder: Any = Colours()
    found = read_features(PictureSet("x", 5, read), networks, encoder, 2)
    assert made == 5
    assert {label: rows.shape for label, rows in found.of.items()} == {"all": (5, 3), "two": (5, 2)}
    assert (found.count, found.keys, found.per_prompt) == (5, ["0", "1", "2", "3", "4"], 1)
    red, green = Colours().images([plain("red"), plain("green")]).double()
    assert found.clip[:4] == pytest.approx([100, 100 * max(0.0, float(red @ green)), 0, 100], abs=1e-4)
    bare = PictureSet("y", 1, lambda: iter([Shown("p", plain("red"), None)]))
    with pytest.raises(ValueError, match="'y' has no caption for 'p'"):
        read_features(bare, networks, encoder, 2)
    assert read_features(bare, networks, None, 2).count == 1
