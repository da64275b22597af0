"""LPIPS of drawn weights, beside torchmetrics' and a plain implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from imagen.scores.lpips import Lpips, alexnet, vgg16

NETWORKS = {"alex": alexnet, "vgg": vgg16}


def pictures(count: int = 3, height: int = 40, width: int = 33, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def drawn(name: str) -> nn.Sequential:
    torch.manual_seed(3)
    return NETWORKS[name]()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As torchvision's files: with a classifier behind the features."""
    folder = tmp_path_factory.mktemp("weights")
    for name in NETWORKS:
        weights = {f"features.{key}": value for key, value in drawn(name).state_dict().items()}
        torch.save({**weights, "classifier.1.weight": torch.zeros(2, 2)}, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in NETWORKS}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchmetrics_finds_the_same(name: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets our network where it would ask torchvision for one; the taps, the scaling, the channels are its own."""
    from torchmetrics.functional.image import lpips as theirs

    layers = nn.Sequential(*drawn(name), nn.MaxPool2d(2))
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *given: layers)
    found = Lpips(files[name])
    x, y = pictures(), pictures(seed=1)
    assert found.name == name
    expected = theirs.learned_perceptual_image_patch_similarity(x, y, net_type=name, reduction="none")
    np.testing.assert_allclose(found(x, y), expected.numpy(), rtol=1e-4)
    assert (found(x, y) > 1e-4).all()


# Of each convolution: its number in torchvision's features, stride, padding, the pooling before it, and whether LPIPS
# looks at what it gives.
PLAIN = {
    "alex": [(0, 4, 2, 0, 1), (3, 1, 2, 3, 1), (6, 1, 1, 3, 1), (8, 1, 1, 0, 1), (10, 1, 1, 0, 1)],
    "vgg": [
        *((0, 1, 1, 0, 0), (2, 1, 1, 0, 1), (5, 1, 1, 2, 0), (7, 1, 1, 0, 1), (10, 1, 1, 2, 0), (12, 1, 1, 0, 0)),
        *((14, 1, 1, 0, 1), (17, 1, 1, 2, 0), (19, 1, 1, 0, 0), (21, 1, 1, 0, 1), (24, 1, 1, 2, 0), (26, 1, 1, 0, 0)),
        (28, 1, 1, 0, 1),
    ],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_paper_s_sum(name: str, files: dict[str, Path]) -> None:
    """Eq. 1: over layers, the mean over pixels of |w * (f - f')|^2, of features that have unit length."""
    path = files[name]
    found, weights = Lpips(path), torch.load(path, weights_only=True)
    a, b = pictures(1), pictures(1, seed=1)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    both = ((torch.cat([a, b]) + 1) / 2 - mean) / deviation  # ImageNet's
    total, channels = 0.0, iter(found.channels)
    for number, stride, padding, pooled, seen in PLAIN[name]:
        both = F.max_pool2d(both, pooled, 2) if pooled else both
        kernel, bias = weights[f"features.{number}.weight"], weights[f"features.{number}.bias"]
        both = F.conv2d(both, kernel, bias, stride, padding).clamp(min=0)
        if seen:
            unit, beside = (v / v.square().sum(0).sqrt() for v in both)
            total += float((next(channels)[0] * (unit - beside) ** 2).sum(dim=0).mean())
    assert found(a, b)[0] == pytest.approx(total, rel=2e-3)  # the authors' code rounds ImageNet's numbers


@pytest.mark.parametrize(("name", "published"), [("alex", 2_469_696), ("vgg", 14_714_688)])
def test_networks_have_as_many_weights_as_was_published(name: str, published: int) -> None:
    assert sum(one.numel() for one in NETWORKS[name]().parameters()) == published


def test_it_is_0_of_equal_pictures_symmetric_and_of_each_pair_alone(files: dict[str, Path]) -> None:
    found = Lpips(str(files["alex"]))
    x, y = pictures(), pictures(seed=1)
    assert found(x, x).tolist() == [0.0] * 3
    np.testing.assert_allclose(found(x, y), found(y, x), rtol=1e-6)
    np.testing.assert_allclose(found(x, y)[1], found(x[1:2], y[1:2])[0], rtol=1e-5)
    near = (x + 0.01 * y).clamp(-1, 1)
    assert (found(x, near) < found(x, y)).all()
    assert found(x.double(), y.double()).dtype == np.float64
    assert found(x[:0], y[:0]).shape == (0,)


def test_safetensors_are_read_too(files: dict[str, Path], tmp_path: Path) -> None:
    weights = {f"features.{key}": value for key, value in drawn("alex").state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    x, y = pictures(), pictures(seed=1)
    found = Lpips(tmp_path / "model.safetensors")
    assert found(x, y).tolist() == Lpips(files["alex"])(x, y).tolist()


def test_what_are_no_weights(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing.pth is no file; expected torchvision's alexnet-owt-7be5be79.pth or"):
        Lpips(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text.pth cannot be read as weights: [^\n]*$"):
        Lpips(tmp_path / "text.pth")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth holds no network of LPIPS; expected torchvision's"):
        Lpips(tmp_path / "other.pth")
    weights = torch.load(files["alex"], weights_only=True)
    del weights["features.6.bias"]
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r'part.pth is not the alex network of torchvision: [^\n]*"6.bias"[^\n]*$'):
        Lpips(tmp_path / "part.pth")


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (torch.zeros(1, 3, 40, 31), torch.zeros(1, 3, 40, 31), r"pictures are \(1, 3, 40, 31\) and .* of at least 32"),
        (torch.zeros(1, 1, 40, 40), torch.zeros(1, 1, 40, 40), r"pictures are \(1, 1, 40, 40\)"),
        (torch.zeros(3, 40, 40), torch.zeros(3, 40, 40), r"pictures are \(3, 40, 40\)"),
        (torch.zeros(2, 3, 40, 40), torch.zeros(1, 3, 40, 40), r"pictures are \(2, 3, 40, 40\) and \(1, 3, 40, 40\)"),
        (
            torch.zeros(1, 3, 40, 40),
            torch.full((1, 3, 40, 40), 255.0),
            "pictures reach from 255 to 255; expected values",
        ),
        (torch.full((1, 3, 40, 40), torch.nan), torch.zeros(1, 3, 40, 40), "pictures reach from nan to nan"),
    ],
)
def test_what_are_no_pictures(x: Tensor, y: Tensor, told: str, files: dict[str, Path]) -> None:
    found = Lpips(files["alex"])
    with pytest.raises(ValueError, match=f"^{told}"):
        found(x, y)


def test_the_smallest_pictures_pass(files: dict[str, Path]) -> None:
    for name in NETWORKS:
        assert np.isfinite(Lpips(files[name])(pictures(1, 32, 32), pictures(1, 32, 32, seed=1))).all()
