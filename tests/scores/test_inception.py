"""The Inception of the FID, with drawn weights: the features that torch-fidelity's and clean-fid's own networks give.

The published weights are not at hand. Every drawn weight counts in a feature, the quirks of the graph included, so
equality with these holds for those.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from imagen.scores import inception
from imagen.scores.features import load_features
from imagen.scores.inception import Inception, load_inception
from imagen.scores.resize import RESIZES
from tests.scores.drawn import drawn_pictures, drawn_state

GOLDENS = np.load(Path(__file__).parent / "goldens" / "inception.npz")
PICTURES = [Image.fromarray(levels) for levels in drawn_pictures()]


def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in Inception().state_dict().items()}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in drawn_state(shapes()).items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, state: dict[str, torch.Tensor]) -> Path:
    path = tmp_path_factory.mktemp("inception") / "drawn-inception.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("resize", RESIZES)
def test_features_are_those_of_torch_fidelity_and_of_clean_fid(weights: Path, resize: str) -> None:
    network = load_features(weights, resize=resize)
    some = slice(RESIZES.index(resize), None, 2)  # every other one: three by each way
    found, expected = network.features(PICTURES[some], batch_size=2), GOLDENS[f"features_{resize}"][some]
    assert found.shape == (3, 2048)
    assert network.dim == 2048
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    # And pictures' features are not so near each other's that this says nothing.
    apart = np.linalg.norm(expected[:, None] - expected, axis=-1)[~np.eye(len(expected), dtype=bool)]
    assert np.linalg.norm(found - expected, axis=-1).max() < 1e-3 * apart.min()


def test_the_two_kinds_of_file_hold_the_same_network(
    weights: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(state, tmp_path / "drawn.safetensors")
    counted = {f"{key.removesuffix('weight')}num_batches_tracked" for key in state if key.endswith("bn.weight")}
    torch.save({**state, **{key: torch.tensor(7) for key in counted}}, tmp_path / "counted.pth")
    one, other, third = (load_features(path) for path in (weights, *sorted(tmp_path.iterdir())))
    assert one.preprocessing == other.preprocessing == third.preprocessing
    assert np.array_equal(one.features(PICTURES[:1]), other.features(PICTURES[:1]))


def test_only_the_file_of_the_published_checksum_is_called_fid(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_features(weights).label == "drawn-inception"
    assert load_features(weights, resize="clean").label == "drawn-inception"
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())
    standard, clean = load_features(weights), load_features(weights, resize="clean")
    assert (standard.label, clean.label) == ("fid", "clean-fid")
    differing = {key for key, value in standard.preprocessing.items() if clean.preprocessing[key] != value}
    assert differing == {"resize"}


def test_a_file_that_is_merely_named_fid_is_refused(tmp_path: Path) -> None:
    torch.save(thin(), tmp_path / "fid.pth")
    with pytest.raises(ValueError, match="'fid' is not the standard Inception.*rename"):
        load_features(tmp_path / "fid.pth")


def thin() -> dict[str, Any]:
    """Weights of 1 that take no room in a file."""
    return {key: torch.ones(1).expand(shape) for key, shape in shapes().items() if not key.endswith("tracked")}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: {**thin(), "fc.bias": torch.ones(1000)}, r"fc.bias is \(1000,\), expected \(1008,\)"),
        (lambda: {key: value for key, value in thin().items() if key != "fc.bias"}, "lacks fc.bias, one of 1 names"),
        (lambda: {**thin(), "AuxLogits.fc.bias": torch.ones(2)}, "has AuxLogits.fc.bias, one of 1 names"),
        (lambda: {**thin(), "fc.bias": 3}, r"fc.bias is \(\), expected"),
        (lambda: [torch.ones(3)], "it is a list"),
    ],
    ids=["shape", "lacks", "more", "number", "list"],
)
def test_other_weights_are_refused_in_a_line(make: Any, match: str, tmp_path: Path) -> None:
    torch.save(make(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=match) as caught:
        load_inception(tmp_path / "other.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "empty.pth", "pickled.pth"])
def test_a_file_that_cannot_be_read_is_refused_in_a_line(name: str, weights: Path, tmp_path: Path) -> None:
    if name == "pickled.pth":
        torch.save(Image.new("RGB", (2, 2)), tmp_path / name)  # an object of a class
    else:
        (tmp_path / name).write_bytes(b"" if name == "empty.pth" else weights.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=f"{name}' holds no weights that can be read.*give pt_inception") as caught:
        load_inception(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_unknown_way_of_resizing_is_refused(weights: Path) -> None:
    with pytest.raises(ValueError, match="resize is 'bicubic'; expected one of tf1, clean"):
        load_features(weights, resize="bicubic")
