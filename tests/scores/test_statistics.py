"""Kept reference statistics: what comes back, and for whom."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from imagen.scores import statistics
from imagen.scores.features import FeatureNetwork
from imagen.scores.statistics import load_statistics, save_statistics

NETWORK = FeatureNetwork(
    label="small-clip",
    dim=5,
    preprocessing={"network": "ab" * 32, "output": "image embedding", "size": {"height": 16}, "resample": 3},
    embed=lambda pictures: torch.zeros(len(pictures), 5),
)


def drawn(rows: int = 20) -> np.ndarray:
    """As networks give them: float64 that were float32."""
    return np.random.default_rng(4).standard_normal((rows, 5)).astype(np.float32).astype(np.float64)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    save_statistics(tmp_path / "kept.safetensors", drawn(), NETWORK, made_of="20 drawn rows")
    return tmp_path / "kept.safetensors"


def test_everything_comes_back_to_the_bit(kept: Path) -> None:
    reference = load_statistics(kept, NETWORK)
    assert reference.features.dtype == np.float64
    assert np.array_equal(reference.features, drawn())
    assert np.allclose(reference.moments.mean, drawn().mean(axis=0), rtol=1e-14)
    assert np.allclose(reference.moments.cov, np.cov(drawn(), rowvar=False), rtol=1e-13)
    assert (reference.moments.count, reference.label, reference.made_of) == (20, "small-clip", "20 drawn rows")


def test_the_same_statistics_are_the_same_file_and_nothing_is_left_beside_it(kept: Path) -> None:
    save_statistics(kept.with_name("again"), drawn(), NETWORK, made_of="20 drawn rows")
    assert kept.read_bytes() == kept.with_name("again").read_bytes()
    assert sorted(path.name for path in kept.parent.iterdir()) == ["again", "kept.safetensors"]


def test_a_folder_may_be_renamed(kept: Path) -> None:
    assert load_statistics(kept, replace(NETWORK, label="other-name")).label == "small-clip"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"network": "cd" * 32}, "whose network was 'abab.*is 'cdcd"),
        ({"resample": 2}, "made with 'small-clip', whose resample was 3; that of 'small-clip' is 2: make"),
        ({"size": {"height": 32}}, "whose size was {'height': 16}; that of 'small-clip' is {'height': 32}"),
        ({"crop": 8}, "whose crop was None; that of 'small-clip' is 8"),
        ({"resample": 2, "output": "pooler_output"}, "whose output was 'image embedding'.*resample differ, too"),
        ({"resample": 2, "network": "cd" * 32}, "whose network was.*resample differ, too"),
    ],
)
def test_another_network_or_preprocessing_is_refused_by_name(kept: Path, changes: dict[str, Any], match: str) -> None:
    other = replace(NETWORK, preprocessing={**NETWORK.preprocessing, **changes})
    with pytest.raises(ValueError, match=match) as caught:
        load_statistics(kept, other)
    assert "\n" not in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_preprocessing_that_is_no_longer_there_is_refused(kept: Path) -> None:
    fewer = {key: value for key, value in NETWORK.preprocessing.items() if key != "resample"}
    with pytest.raises(ValueError, match="whose resample was 3; that of 'small-clip' is None"):
        load_statistics(kept, replace(NETWORK, preprocessing=fewer))


def rewritten(path: Path, said: Any = None, **tensors: np.ndarray) -> None:
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    if said is not None:
        metadata["statistics"] = said if isinstance(said, str) else json.dumps(said)
    save_file({**load_file(path), **tensors}, path, metadata)


def said_in(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["statistics"])


def test_a_newer_format_is_refused(kept: Path) -> None:
    rewritten(kept, {**said_in(kept), "format": statistics.FORMAT + 1})
    with pytest.raises(ValueError, match="format 2, newer than 1: update"):
        load_statistics(kept, NETWORK)


@pytest.mark.parametrize("part", [0, 7, 100, 0.5, 0.99])
def test_a_cut_file_is_refused_in_a_line(kept: Path, part: float) -> None:
    content = kept.read_bytes()
    kept.write_bytes(content[: int(part if part >= 1 else part * len(content))])
    refused(kept)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: save_file({"mean": np.zeros(5)}, path),
        lambda path: save_file({"mean": np.zeros(5)}, path, {"statistics": json.dumps(said_in(path))}),
        lambda path: rewritten(path, "no JSON"),
        lambda path: rewritten(path, [1, 2]),
        lambda path: rewritten(path, {"format": 1}),
        lambda path: rewritten(path, {**said_in(path), "count": 21}),
        lambda path: rewritten(path, features=drawn()[:, :4].astype(np.float32).copy()),
        lambda path: rewritten(path, features=np.full((20, 5), np.nan, np.float32)),
        lambda path: rewritten(path, mean=np.zeros(4), cov=np.eye(4)),
        lambda path: rewritten(path, cov=np.triu(np.ones((5, 5)))),
    ],
    ids=["no entry", "no features", "no json", "list", "few keys", "count", "width", "nan", "moments", "cov"],
)
def test_what_is_inconsistent_is_refused_in_a_line(kept: Path, damage: Any) -> None:
    damage(kept)
    refused(kept)


def refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"kept.safetensors' are damaged or none \(.+\); make") as caught:
        load_statistics(path, NETWORK)
    assert "\n" not in str(caught.value)


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ValueError, match="no statistics at .*no such file"):
            load_statistics(path, NETWORK)


@pytest.mark.parametrize(
    ("features", "match"),
    [
        (drawn()[:, :4], r"features are \(20, 4\), and 'small-clip' makes 5"),
        (drawn(1), "has 1 rows"),
        (np.full((3, 5), np.nan), "not finite"),
        (drawn()[0], r"expected numbers \(N, D\)"),
    ],
    ids=["width", "one row", "nan", "flat"],
)
def test_what_are_no_features_is_not_written(tmp_path: Path, features: np.ndarray, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        save_statistics(tmp_path / "new", features, NETWORK)
    assert not list(tmp_path.iterdir())


def test_an_old_file_stays_where_writing_fails(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    before = kept.read_bytes()
    monkeypatch.setattr(statistics, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_statistics(kept, drawn(9), NETWORK)
    assert kept.read_bytes() == before
    assert len(list(kept.parent.iterdir())) == 1
