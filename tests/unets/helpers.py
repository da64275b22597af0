"""Small networks and inputs for the tests of all networks."""

from typing import Any

import torch
from torch import Tensor, nn

from unets import BaseUNet, DiT, EfficientUNet

BASE: dict[str, Any] = {
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (1,),
    "head_dim": 8,
    "text_dim": 24,
    "norm_groups": 8,
}
EFFICIENT: dict[str, Any] = {
    "channels": (16, 24),
    "num_res_blocks": (1, 2),
    "strides": (2, 2),
    "attention_levels": (1,),
    "heads": 4,
    "text_dim": 24,
    "norm_groups": 8,
}
DIT: dict[str, Any] = {"patch_size": 2, "width": 16, "depth": 2, "head_dim": 8, "mlp_ratio": 2, "text_dim": 24}
UNETS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "base": (BaseUNet, BASE),
    "base_group": (BaseUNet, {**BASE, "text_norm": "group", "text_proj_dim": 32}),
    "efficient": (EfficientUNet, EFFICIENT),
    "efficient_cross": (EfficientUNet, {**EFFICIENT, "attention": "cross"}),
}
KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {**UNETS, "dit": (DiT, DIT)}


def redraw(model: nn.Module, seed: int = 0) -> None:
    """Every tensor at random, the norms and biases too, at scales that keep the output near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            fan = value[0].numel() if value.ndim > 1 else 1
            value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype) / fan**0.5)


def make(kind: str, **overrides: Any) -> Any:
    """A network of ``KINDS`` with every tensor random, in float64."""
    cls, arguments = KINDS[kind]
    unet = cls(**{**arguments, **overrides}).double().eval()
    redraw(unet)
    return unet


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def image_inputs(unet: Any, batch: int = 2, size: tuple[int, int] = (8, 8)) -> dict[str, Any]:
    """Sample, timestep and, where the network wants them, the low-resolution image and its level."""
    given: dict[str, Any] = {
        "sample": draw(1, batch, unet.config.in_channels, *size),
        "timestep": torch.linspace(10, 900, batch),
    }
    if unet.config.lowres_channels:
        given["lowres"] = draw(2, batch, unet.config.lowres_channels, *size)
        given["aug_timestep"] = torch.linspace(300, 0, batch)
    return given


def run(unet: Any, **overrides: Any) -> Tensor:
    """The network's output for two images, with texts of three tokens and of one where it takes text."""
    given = {**image_inputs(unet), **overrides}
    if unet.config.text_dim:
        given |= {"text": draw(3, 2, 3, 24), "text_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    out: Tensor = unet(**given)
    return out
