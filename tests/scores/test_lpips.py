"""LPIPS of drawn weights, beside torchmetrics' and a plain implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imagen.scores.lpips import Lpips, alexnet, vgg16

NETWORKS = {"alex": alexnet, "vgg": vgg16}


def pictures(count: int = 3, height: int = 40, width: int = 33, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def drawn(name: str) -> nn.Sequential:
    torch.manual_seed(3)
    return NETWORKS[name]()


def stored(name: str, folder: Path) -> Path:
    """As torchvision's files: with a classifier behind the features."""
    path = folder / f"{name}.pth"
    weights = {f"features.{key}": value for key, value in drawn(name).state_dict().items()}
    torch.save({**weights, "classifier.1.weight": torch.zeros(2, 2)}, path)
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_torchmetrics_finds_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets our network where it would ask torchvision for one; the taps, the scaling, the channels are its own."""
    from torchmetrics.functional.image import lpips as theirs

    layers = nn.Sequential(*drawn(name), nn.MaxPool2d(2))
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *given: layers)
    found = Lpips(stored(name, tmp_path))
    x, y = pictures(), pictures(seed=1)
    assert found.name == name
    expected = theirs.learned_perceptual_image_patch_similarity(x, y, net_type=name, reduction="none")
    np.testing.assert_allclose(found(x, y), expected.numpy(), rtol=1e-4)
    assert (found(x, y) > 1e-4).all()


def test_alexnet_s_is_the_paper_s_sum(tmp_path: Path) -> None:
    """Eq. 1: over layers, the mean over pixels of |w * (f - f')|^2, of features that have unit length."""
    found = Lpips(stored("alex", tmp_path))
    a, b = pictures(1), pictures(1, seed=1)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    one, other = ((v + 1) / 2 for v in (a, b))
    one, other = (one - mean) / deviation, (other - mean) / deviation  # ImageNet's
    total = 0.0
    weights = iter(found.channels)
    for layer in drawn("alex"):
        one, other = layer(one), layer(other)
        if isinstance(layer, nn.ReLU):
            unit, beside = (v[0] / v[0].square().sum(0).sqrt() for v in (one, other))
            apart = (unit - beside).detach().numpy() ** 2
            total += float((next(weights)[0].numpy() * apart).sum(axis=0).mean())
    assert found(a, b)[0] == pytest.approx(total, rel=2e-3)  # the authors' code rounds ImageNet's numbers


def test_it_is_0_of_equal_pictures_symmetric_and_of_each_pair_alone(tmp_path: Path) -> None:
    found = Lpips(str(stored("alex", tmp_path)))
    x, y = pictures(), pictures(seed=1)
    assert found(x, x).tolist() == [0.0] * 3
    np.testing.assert_allclose(found(x, y), found(y, x), rtol=1e-6)
    np.testing.assert_allclose(found(x, y)[1], found(x[1:2], y[1:2])[0], rtol=1e-5)
    near = (x + 0.01 * y).clamp(-1, 1)
    assert (found(x, near) < found(x, y)).all()
    assert found(x.double(), y.double()).dtype == np.float64
    assert found(x[:0], y[:0]).shape == (0,)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    weights = {f"features.{key}": value for key, value in drawn("alex").state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    x, y = pictures(), pictures(seed=1)
    found = Lpips(tmp_path / "model.safetensors")
    assert found(x, y).tolist() == Lpips(stored("alex", tmp_path))(x, y).tolist()


def test_what_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing.pth is no file; expected torchvision's alexnet-owt-7be5be79.pth or"):
        Lpips(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text.pth cannot be read as weights: [^\n]*$"):
        Lpips(tmp_path / "text.pth")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth holds no network of LPIPS; expected torchvision's"):
        Lpips(tmp_path / "other.pth")
    weights = torch.load(stored("alex", tmp_path), weights_only=True)
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
def test_what_are_no_pictures(x: Tensor, y: Tensor, told: str, tmp_path: Path) -> None:
    found = Lpips(stored("alex", tmp_path))
    with pytest.raises(ValueError, match=f"^{told}"):
        found(x, y)


def test_the_smallest_pictures_pass(tmp_path: Path) -> None:
    for name in NETWORKS:
        assert np.isfinite(Lpips(stored(name, tmp_path))(pictures(1, 32, 32), pictures(1, 32, 32, seed=1))).all()
