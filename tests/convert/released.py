"""Checkpoints in the shape of DeepFloyd IF's, a few thousand parameters each, written by diffusers itself."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
from diffusers.pipelines.deepfloyd_if import IFSafetyChecker, IFWatermarker
from transformers import CLIPConfig, CLIPImageProcessor, T5EncoderModel

from tests.factories import WIDTH, tiny_text_encoder, tiny_tokenizer
from tests.unets.helpers import redraw

SHARED: dict[str, Any] = {
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
    "cross_attention_norm": "group_norm",
    "out_channels": 6,
}
#: The configurations published with IF-I-XL and IF-II-L.
IF_I_XL: dict[str, Any] = {
    **SHARED,
    "sample_size": 64,
    "in_channels": 3,
    "block_out_channels": [704, 1408, 2112, 2816],
    "layers_per_block": 3,
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    "cross_attention_dim": 2816,
    "encoder_hid_dim": 4096,
    "attention_head_dim": 64,
    "addition_embed_type_num_heads": 64,
}
IF_II_L: dict[str, Any] = {
    **SHARED,
    "sample_size": 256,
    "in_channels": 6,
    "block_out_channels": [160, 320, 640, 960, 1280],
    "layers_per_block": [2, 2, 3, 5, 5],
    "down_block_types": [*["ResnetDownsampleBlock2D"] * 3, *["SimpleCrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 2, *["ResnetUpsampleBlock2D"] * 3],
    "cross_attention_dim": 1280,
    "encoder_hid_dim": 4096,
    "attention_head_dim": 64,
    "addition_embed_type_num_heads": 64,
    "class_embed_type": "timestep",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4142271248762552,
    "mid_block_scale_factor": 1.4142271248762552,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 1280,
}
#: The same two in miniature: 16 px, and 16 -> 32 px.
NARROW: dict[str, Any] = {
    "attention_head_dim": 8,
    "norm_num_groups": 4,
    "cross_attention_dim": 64,
    "encoder_hid_dim": WIDTH,
    "addition_embed_type_num_heads": 4,
}
TINY_I: dict[str, Any] = {
    **IF_I_XL,
    **NARROW,
    "sample_size": 16,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
}
TINY_II: dict[str, Any] = {
    **IF_II_L,
    **NARROW,
    "sample_size": 32,
    "block_out_channels": [8, 16],
    "layers_per_block": [1, 2],
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "time_embedding_dim": 16,
}
LICENCE = "DeepFloyd IF License Agreement (stands for the real one)\n"


def unet(config: dict[str, Any], seed: int) -> UNet2DConditionModel:
    """diffusers' network with every tensor at random, norms and biases too."""
    network = UNet2DConditionModel(**config).eval()
    redraw(network, seed)
    return network


def scheduler(cap: float) -> DDPMScheduler:
    """As released with a stage: cosine, learned variance, dynamic thresholding."""
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=cap,
    )


@cache
def text_encoder() -> T5EncoderModel:
    """The encoder that both stages share."""
    return tiny_text_encoder()


def safety_parts() -> dict[str, Any]:
    """A random safety checker with its feature extractor, and a watermark."""
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**size, "image_size": 16, "patch_size": 8, "projection_dim": 8}
    config = CLIPConfig(text_config={**size, "vocab_size": 8}, vision_config=vision, projection_dim=8)
    torch.manual_seed(0)
    mark = IFWatermarker()
    mark.watermark_image.fill_(200)
    extractor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return {"safety_checker": IFSafetyChecker(config).eval(), "feature_extractor": extractor, "watermarker": mark}


NO_SAFETY = {"safety_checker": None, "feature_extractor": None, "watermarker": None, "requires_safety_checker": False}


def stage_1(config: dict[str, Any] = TINY_I, **parts: Any) -> IFPipeline:
    """diffusers' pipeline of stage I."""
    given = {"tokenizer": tiny_tokenizer(), "text_encoder": text_encoder(), **NO_SAFETY, **parts}
    return IFPipeline(unet=unet(config, 1), scheduler=scheduler(1.5), **given)


def stage_2(config: dict[str, Any] = TINY_II, **parts: Any) -> IFSuperResolutionPipeline:
    """diffusers' pipeline of stage II."""
    given = {"tokenizer": tiny_tokenizer(), "text_encoder": text_encoder(), **NO_SAFETY, **parts}
    noising = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return IFSuperResolutionPipeline(
        unet=unet(config, 2), scheduler=scheduler(1.0), image_noising_scheduler=noising, **given
    )


def save(pipe: Any, folder: Path, **options: Any) -> Path:
    """Save as the checkpoints are published: with a licence beside the components."""
    pipe.save_pretrained(folder, **options)
    (folder / "LICENSE").write_text(LICENCE)
    return folder
