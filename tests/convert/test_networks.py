"""IF's networks as published, and a grid of configurations around them: ours is diffusers', tensor by tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from imagen.convert.configs import unet2d_config, unet_arguments
from tests.convert.released import IF_I_XL, IF_II_L, TINY_I, TINY_II, unet
from tests.unets.helpers import draw
from unets import BaseUNet

DOWN, TEXT_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
UP, TEXT_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"


def shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "millions"), [(IF_I_XL, 4304.7), (IF_II_L, 1243.3)], ids=["IF-I-XL", "IF-II-L"])
def test_names_shapes_and_counts_at_full_size(config: dict[str, Any], millions: float) -> None:
    with torch.device("meta"):
        theirs, ours = UNet2DConditionModel(**config), BaseUNet(**unet_arguments(config, "config.json"))
    assert shapes(ours) == shapes(theirs)
    assert round(sum(parameter.numel() for parameter in ours.parameters()) / 1e6, 1) == millions


def levels(attention: str) -> dict[str, Any]:
    """Block types of a network whose levels attend where the word has an "a"."""
    return {
        "down_block_types": [TEXT_DOWN if word == "a" else DOWN for word in attention],
        "up_block_types": [TEXT_UP if word == "a" else UP for word in reversed(attention)],
    }


GRID: dict[str, dict[str, Any]] = {
    "I": TINY_I,
    "II": TINY_II,
    "I, three levels": {**TINY_I, "block_out_channels": [8, 16, 24], "layers_per_block": [1, 2, 1], **levels("-aa")},
    "I, attention everywhere": {**TINY_I, "block_out_channels": [16, 32], **levels("aa")},
    "I, silu": {**TINY_I, "act_fn": "silu", "attention_head_dim": 16, "norm_num_groups": 8},
    "I, one level": {**TINY_I, "block_out_channels": [16], **levels("a"), "time_embedding_dim": 48},
    "I, activation once": {**TINY_I, "resnet_skip_time_act": True, "time_embedding_act_fn": "gelu"},
    "I, not scaled by 1": {**TINY_I, "resnet_out_scale_factor": 2.0, "mid_block_scale_factor": 2.0},
    "II, three levels": {
        **TINY_II,
        "block_out_channels": [8, 8, 24],
        "layers_per_block": 1,
        **levels("-aa"),
    },
    "II, plain": {
        **TINY_II,
        **{"resnet_skip_time_act": False, "time_embedding_act_fn": None, "act_fn": "silu", "time_embedding_dim": None},
        **{"addition_embed_type_num_heads": 2, "cross_attention_dim": 96},
    },
}


Pair = tuple[UNet2DConditionModel, BaseUNet]


def pair(config: dict[str, Any], dtype: torch.dtype) -> Pair:
    reference = unet(config, seed=1).to(dtype)
    ours = BaseUNet(**unet_arguments(config, "config.json")).to(dtype).eval()
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def both(networks: Pair, dtype: torch.dtype, timestep: Tensor, **given: Any) -> list[Tensor]:
    """Outputs of diffusers' network and of ours for two pictures, not square, and texts of `length` tokens."""
    theirs, ours = networks
    size = (8, 12) if len(theirs.config.block_out_channels) > 2 else (4, 10)
    z, lowres = (draw(seed, 2, 3, *size).to(dtype) for seed in (1, 2))
    text = draw(3, 2, given["length"], theirs.config.encoder_hid_dim).to(dtype)
    if theirs.config.class_embed_type is None:
        return [theirs(z, timestep, text).sample, ours(z, timestep, ours(text=text))]
    aug = given["aug"]
    reference = theirs(torch.cat([z, lowres], dim=1), timestep, text, class_labels=aug).sample
    return [reference, ours(z, timestep, ours(text=text), lowres=lowres, aug_timestep=aug)]


@torch.no_grad()
@pytest.mark.parametrize("name", GRID)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_outputs_are_diffusers(name: str, dtype: torch.dtype, tolerance: float) -> None:
    networks = pair(GRID[name], dtype)
    for timestep, length, aug in (([0, 999], 1, [0, 250]), ([421, 7], 77, [999, 3]), ([500, 500], 5, [250, 250])):
        expected, got = both(networks, dtype, torch.tensor(timestep), length=length, aug=torch.tensor(aug))
        assert expected.std() > 0.01
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", ["I", "II"])
def test_each_tensor_affects_the_output(name: str) -> None:
    """By its gradient, but for one: a bias on all keys of the pooling alike is what a softmax takes away again.

    What is left of that one, 1e-8 or so, is the float32 in which IF rounds that softmax.
    """
    network = pair(GRID[name], torch.float64)[1].requires_grad_(True)
    z, lowres, text = draw(1, 2, 3, 4, 10), draw(2, 2, 3, 4, 10), draw(3, 2, 5, network.config.text_dim)
    given = {"lowres": lowres, "aug_timestep": 250} if network.config.lowres_channels else {}
    out = network(z, torch.tensor([3, 977]), text=text, **given)
    (out * draw(4, *out.shape)).sum().backward()
    largest = {key: float(parameter.grad.abs().max()) for key, parameter in network.named_parameters()}
    without = [key for key, gradient in largest.items() if gradient < 1e-6]
    print(sorted((gradient, key) for key, gradient in largest.items())[:3])
    assert without == ["add_embedding.pool.k_proj.bias"]


@pytest.mark.parametrize("name", GRID)
def test_the_way_back_describes_the_same_network(name: str) -> None:
    ours = BaseUNet(**unet_arguments(GRID[name], "config.json"))
    back = unet2d_config(ours.config, GRID[name]["sample_size"], "config.json")
    assert unet_arguments(back, "config.json") == unet_arguments(GRID[name], "config.json")
    if name in ("I", "II"):  # entry by entry, to the last digit of the scale factor
        assert {key: back[key] for key in GRID[name]} == GRID[name]
