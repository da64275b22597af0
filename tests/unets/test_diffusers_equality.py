"""BaseUNet against an independent implementation: diffusers' UNet2DConditionModel in the shapes of DeepFloyd IF."""

from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tests.unets.helpers import redraw
from unets import BaseUNet

SHARED: dict[str, Any] = {
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
    "cross_attention_norm": "group_norm",
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "addition_embed_type_num_heads": 4,
    "encoder_hid_dim": 24,
    "cross_attention_dim": 32,
    "out_channels": 6,
}
STAGE_1 = {
    **SHARED,
    "in_channels": 3,
    "block_out_channels": (16, 32, 48),
    "layers_per_block": 2,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
STAGE_2 = {
    **SHARED,
    "in_channels": 6,
    "block_out_channels": (16, 32, 48),
    "layers_per_block": [1, 2, 3],
    "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
    "class_embed_type": "timestep",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4142271248762552,
    "mid_block_scale_factor": 1.4142271248762552,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 48,
}
OURS: dict[str, Any] = {
    "out_channels": 6,
    "model_channels": 16,
    "channel_mult": (1, 2, 3),
    "head_dim": 8,
    "text_dim": 24,
    "text_proj_dim": 32,
    "text_norm": "group",
    "pool_heads": 4,
    "norm_groups": 8,
}
OURS_1 = {**OURS, "num_res_blocks": 2, "attention_levels": (1, 2), "activation": "gelu"}
OURS_2 = {
    **OURS,
    "lowres_channels": 3,
    "num_res_blocks": (1, 2, 3),
    "attention_levels": (2,),
    "time_embed_dim": 48,
    "activation": "gelu",
    "residual_scale": 1 / 1.4142271248762552,
}


def pair(theirs: dict[str, Any], ours: dict[str, Any], seed: int = 0) -> tuple[UNet2DConditionModel, BaseUNet]:
    reference = UNet2DConditionModel(**theirs).double().eval()
    redraw(reference, seed)
    network = BaseUNet(**ours).double().eval()
    network.load_state_dict(reference.state_dict())
    return reference, network


def inputs(seed: int, length: int, size: tuple[int, int] = (8, 16)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = [torch.randn(2, c, *size, generator=g, dtype=torch.float64) for c in (3, 3)]
    return draw[0], draw[1], torch.randn(2, length, 24, generator=g, dtype=torch.float64), torch.tensor([3, 977])


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5])
def test_stage_1_equals_diffusers(length: int) -> None:
    reference, network = pair(STAGE_1, OURS_1)
    z, _, text, timestep = inputs(1, length)
    expected = reference(z, timestep, text).sample
    got = network(z, timestep, text=text)
    assert expected.std() > 0.1
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()


@torch.no_grad()
def test_layer_norm_on_text_equals_diffusers() -> None:
    # diffusers sizes that norm by the image's channels, so the text must have as many: attention on one level alone
    blocks = {key: STAGE_2[key] for key in ("down_block_types", "up_block_types")}
    theirs = {**STAGE_1, **blocks, "cross_attention_norm": "layer_norm", "cross_attention_dim": 48}
    ours = {**OURS_1, "text_norm": "layer", "text_proj_dim": 48, "attention_levels": (2,)}
    reference, network = pair(theirs, ours)
    z, _, text, timestep = inputs(3, 4)
    # diffusers rounds the pooling's softmax to float32, our network only in the IF family's shape: lift that
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        pooled = reference.add_embedding(text)
    reference.add_embedding.forward = lambda *_: pooled
    expected = reference(z, timestep, text).sample
    got = network(z, timestep, text=text)
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()


@torch.no_grad()
def test_stage_2_equals_diffusers() -> None:
    reference, network = pair(STAGE_2, OURS_2)
    z, lowres, text, timestep = inputs(2, 5)
    for aug in (torch.tensor([0, 250]), torch.tensor([999, 1])):
        expected = reference(torch.cat([z, lowres], dim=1), timestep, text, class_labels=aug).sample
        got = network(z, timestep, network(text=text), lowres=lowres, aug_timestep=aug)
        assert expected.std() > 0.1
        assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()
