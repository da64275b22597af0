"""LPIPS: how far two pictures are apart in a classifier's features, weighted as people judged."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imagen.errors import one_line
from imagen.scores.sets import Array

FILES = "alexnet-owt-7be5be79.pth or vgg16-397923af.pth"
SMALLEST = 32  # pixels on a side: of fewer, nothing is left behind the last pooling
# What ImageNet's normalization is for pictures in [-1, 1], to the digits of the authors' code.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips:
    """The learned perceptual distance of Zhang et al. 2018 (arXiv:1801.03924, eq. 1), version 0.1 of its weights.

    Which network it is, AlexNet, whose distances are most often reported, or VGG-16, is seen from the file. The weights
    of its channels come with torchmetrics.

    Args:
        weights: the classifier's, as torchvision publishes them (alexnet-owt-7be5be79.pth, vgg16-397923af.pth), or the
            same names and shapes as safetensors.
        device: where it computes, in float32.

    Attributes:
        name: "alex" or "vgg".

    Raises:
        ValueError: a file that is not there or holds another network, or no torchmetrics.
    """

    def __init__(self, weights: str | Path, device: str = "cpu") -> None:
        stored = _read(Path(weights))
        first = stored.get("features.0.weight", torch.empty(0)).shape
        if first not in ((64, 3, 11, 11), (64, 3, 3, 3)):
            raise ValueError(f"{weights} holds no network of LPIPS; expected torchvision's {FILES}")
        self.name = "alex" if first[-1] == 11 else "vgg"
        layers = alexnet() if self.name == "alex" else vgg16()
        kept = {name.removeprefix("features."): value for name, value in stored.items() if name.startswith("features.")}
        try:
            layers.load_state_dict(kept)
        except RuntimeError as error:
            raise ValueError(f"{weights} is not the {self.name} network of torchvision: {one_line(error)}") from error
        self.layers = layers.float().eval().requires_grad_(False).to(device)
        self.channels = [weight.to(device) for weight in _channel_weights(self.name)]

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Array:
        """Distances of pictures (N, 3, H, W) in [-1, 1] from others of the same shape: (N,), 0 where they are equal.

        Raises:
            ValueError: other shapes, sides below 32 pixels, or values outside [-1, 1].
        """
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < SMALLEST:
            given = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"pictures are {given}; expected (N, 3, H, W) twice, H and W of at least {SMALLEST}")
        for one in (x, y):
            if one.numel() and not one.abs().max() <= 1:  # NaN as well
                raise ValueError(f"pictures reach from {one.min():.4g} to {one.max():.4g}; expected values in [-1, 1]")
        total = torch.zeros(len(x), dtype=torch.float64)
        for weight, a, b in zip(self.channels, self._features(x), self._features(y), strict=True):
            total += F.conv2d((a - b) ** 2, weight).mean(dim=(1, 2, 3)).double().cpu()
        return total.numpy()

    def _features(self, pictures: Tensor) -> list[Tensor]:
        """What stands before each pooling, and in AlexNet behind each convolution: of unit length in each pixel."""
        device = self.channels[0].device
        shift, scale = (torch.tensor(one, device=device).view(3, 1, 1) for one in (SHIFT, SCALE))
        values = (pictures.to(device, torch.float32) - shift) / scale
        found = []
        for layer, after in zip(self.layers, [*list(self.layers)[1:], nn.MaxPool2d(2)], strict=True):
            values = layer(values)
            if isinstance(layer, nn.ReLU) and (self.name == "alex" or isinstance(after, nn.MaxPool2d)):
                found.append(values / (values.norm(dim=1, keepdim=True) + 1e-10))
        return found


def alexnet() -> nn.Sequential:
    """The convolutions of torchvision's AlexNet (Krizhevsky 2014, arXiv:1404.5997), under its names."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


def vgg16() -> nn.Sequential:
    """The convolutions of torchvision's VGG-16 (Simonyan & Zisserman 2014, configuration D), under its names."""
    layers: list[nn.Module] = []
    before = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(depth):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
    return nn.Sequential(*layers)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path} is no file; expected torchvision's {FILES}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # as many kinds as there are ways to be no such file
        raise ValueError(f"{path} cannot be read as weights: {one_line(error)}") from error


def _channel_weights(name: str) -> list[Tensor]:
    """Five, (1, C, 1, 1) each, none below 0."""
    found = find_spec("torchmetrics")
    if found is None or found.origin is None:
        raise ValueError("LPIPS needs torchmetrics, which has its weights of channels: pip install imagen[eval]")
    stored = _read(Path(found.origin).parent / "functional" / "image" / "lpips_models" / f"{name}.pth")
    return [stored[f"lin{i}.model.1.weight"].float() for i in range(5)]
