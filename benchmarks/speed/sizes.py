"""How large what is measured is: on a card, on two CPU cores, and in the tests, where all of it takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from tests.convert.released import IF_I_XL, IF_II_L

PLAIN, TEXT = "Resnet{}sampleBlock2D", "SimpleCrossAttn{}Block2D"


def blocks(plain: int, attending: int) -> dict[str, list[str]]:
    """The first levels without attention, the others with it, as diffusers names them."""
    return {
        "down_block_types": [*[PLAIN.format("Down")] * plain, *[TEXT.format("Down")] * attending],
        "up_block_types": [*[TEXT.format("Up")] * attending, *[PLAIN.format("Up")] * plain],
    }


def stage_one(channels: list[int], size: int = 64, **changes: Any) -> dict[str, Any]:
    """Stage I of the family in another width: attention on all levels but the first."""
    own = {"sample_size": size, "block_out_channels": channels, "cross_attention_dim": channels[-1]}
    return {**IF_I_XL, **own, **blocks(1, len(channels) - 1), **changes}


def stage_two(channels: list[int], layers: list[int], size: int = 256, **changes: Any) -> dict[str, Any]:
    """Stage II of the family in another width: attention on the two lowest levels (on one where there are but two)."""
    plain, last = max(1, len(channels) - 2), channels[-1]
    own = {"sample_size": size, "block_out_channels": channels, "layers_per_block": layers}
    wide = {"cross_attention_dim": last, "time_embedding_dim": last}
    return {**IF_II_L, **own, **wide, **blocks(plain, len(channels) - plain), **changes}


@dataclass(frozen=True)
class Training:
    """One network that is trained.

    Attributes:
        arguments: of its constructor. size: of its pictures.
        batch: pictures of a step. accumulation: parts that it is worked through in.
        optimizer: as ``optim.kind`` names it.
    """

    arguments: dict[str, Any]
    size: int
    batch: int
    accumulation: int = 1
    optimizer: Literal["adamw", "adafactor"] = "adamw"


@dataclass(frozen=True)
class Sizes:
    """All sizes of a run.

    Attributes:
        rehearsal: the tests' own, in which sections that need a card run without one.
        patience: factor on the boxes of time, which are a card's.
        product_side, copy_bytes, ceiling_dtypes: of what the ceilings are measured with.
        dtypes: of sampling. batches: pictures at once. steps: of the sampler. pairs: of a duel.
        one, two: UNet2DConditionModel's configuration of the two stages.
        tokens: of a text. t5: arguments of its configuration.
        train_dtype: in which training computes.
        large, small: base networks of ours.
        efficient: EfficientUNet. glide: arguments of ADM's upsampler, with GLIDE's levels and equal parameters.
        theirs: imagen-pytorch's Unet. matched: arguments of ours, levels and attention alike and as wide as its FLOPs.
        high: EfficientUNet of App. F.3, at ``sides`` in pixels; most_bytes: that it may take at the second of them.
        compile: how sampling is compiled. compile_training: whether a training step is.
    """

    rehearsal: bool
    patience: float
    product_side: int
    copy_bytes: int
    ceiling_dtypes: tuple[torch.dtype, ...]
    dtypes: tuple[torch.dtype, ...]
    batches: tuple[int, ...]
    steps: int
    pairs: int
    one: dict[str, Any]
    two: dict[str, Any]
    tokens: int
    t5: dict[str, Any]
    train_dtype: torch.dtype
    large: Training
    small: Training
    efficient: Training
    glide: dict[str, Any]
    theirs: Training
    matched: dict[str, Any]
    high: dict[str, Any]
    sides: tuple[tuple[int, int], ...]
    most_bytes: float
    compile: dict[str, Any]
    compile_training: bool = True


T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}
GLIDE: dict[str, Any] = {
    "lowres_channels": 3,
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "num_res_blocks": 2,
    "attention_levels": (3, 4, 5),
}
THEIRS = {
    "dim_mults": (1, 2, 3, 4),
    "layer_attns": (False, True, True, True),
    "layer_cross_attns": (False, True, True, True),
}
#: ... and ours alike.
MATCHED: dict[str, Any] = {"channel_mult": (1, 2, 3, 4), "attention_levels": (1, 2, 3), "head_dim": 32}

#: IF-I-L's and IF-II-M's configurations were never published where we could read them: these channels and depths give
#: 935 million parameters against the 900 that its authors state, and 461 against 450.
CARD = Sizes(
    rehearsal=False,
    patience=1.0,
    product_side=8192,
    copy_bytes=4 * 2**30,
    ceiling_dtypes=(torch.bfloat16, torch.float32),
    dtypes=(torch.bfloat16,),
    batches=(1, 4, 16),
    steps=20,
    pairs=3,
    one=stage_one([320, 640, 960, 1280]),
    two=stage_two([128, 256, 512, 768, 768], [2, 2, 3, 4, 2]),
    tokens=77,
    t5=T5_XXL,
    train_dtype=torch.bfloat16,
    large=Training({}, 64, 64, 4, "adafactor"),
    small=Training({"model_channels": 192, "text_dim": 1024}, 64, 64),
    efficient=Training({}, 256, 8),
    glide={**GLIDE, "model_channels": 224},
    theirs=Training({**THEIRS, "dim": 192, "num_resnet_blocks": 3, "text_embed_dim": 1024, "attn_heads": 8}, 64, 32),
    matched={**MATCHED, "model_channels": 160, "num_res_blocks": 3, "text_dim": 1024},
    high={"attention": "cross"},
    sides=((512, 512), (1024, 1024), (1024, 1536)),
    most_bytes=8e9,
    compile={"mode": "reduce-overhead", "fullgraph": True},
)
#: 61 million parameters in stage I, 40 million in training.
CPU = Sizes(
    rehearsal=False,
    patience=10.0,
    product_side=1024,
    copy_bytes=2**28,
    ceiling_dtypes=(torch.float32, torch.bfloat16),
    dtypes=(torch.float32, torch.bfloat16),
    batches=(1, 2),
    steps=2,
    pairs=5,
    one=stage_one([96, 192, 288, 384], encoder_hid_dim=1024, attention_head_dim=32),
    two=stage_two([32, 64, 96, 128], [1, 2, 2, 2], 128, encoder_hid_dim=1024, attention_head_dim=32),
    tokens=77,
    t5={**T5_XXL, "d_model": 1024, "d_ff": 2816, "num_heads": 16},
    train_dtype=torch.float32,
    large=Training({"model_channels": 96, "text_dim": 1024, "head_dim": 32}, 64, 4, 2),
    small=Training({"model_channels": 64, "text_dim": 512}, 64, 4),
    efficient=Training({"channels": (32, 64, 128, 256), "text_dim": 512, "norm_groups": 16}, 128, 2),
    glide={**GLIDE, "model_channels": 56, "text_dim": 512, "norm_groups": 8, "head_dim": 16},
    theirs=Training({**THEIRS, "dim": 80, "num_resnet_blocks": 2, "text_embed_dim": 512, "attn_heads": 4}, 64, 4),
    matched={**MATCHED, "model_channels": 64, "num_res_blocks": 2, "text_dim": 512},
    high={"attention": "cross", "channels": (16, 32, 64, 128), "text_dim": 512, "norm_groups": 8},
    sides=((256, 256), (512, 512), (512, 768)),
    most_bytes=8e9,
    compile={"fullgraph": True},
)
TINY: dict[str, Any] = {
    "encoder_hid_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
    "addition_embed_type_num_heads": 4,
    "cross_attention_dim": 32,
}
TWO_LEVELS: dict[str, Any] = {
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (1,),
    "head_dim": 4,
    "text_dim": 32,
    "norm_groups": 4,
}
TWO_BLOCKS: dict[str, Any] = {
    "channels": (8, 16),
    "num_res_blocks": (1, 2),
    "strides": (2, 2),
    "attention_levels": (1,),
    "text_dim": 32,
    "norm_groups": 4,
}
QUICK = Sizes(
    rehearsal=True,
    patience=5.0,
    product_side=128,
    copy_bytes=2**20,
    ceiling_dtypes=(torch.float32, torch.bfloat16),
    dtypes=(torch.float32, torch.bfloat16),
    batches=(1, 2),
    steps=2,
    pairs=2,
    one=stage_one([16, 32], 16, layers_per_block=1, **TINY),
    two=stage_two([8, 16], [1, 1], 16, **TINY),
    tokens=5,
    t5={"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 64},
    train_dtype=torch.float32,
    large=Training({**TWO_LEVELS, "model_channels": 16}, 16, 4, 2, "adafactor"),
    small=Training({**TWO_LEVELS, "model_channels": 8}, 16, 2),
    efficient=Training(TWO_BLOCKS, 32, 2),
    glide={**TWO_LEVELS, "lowres_channels": 3, "model_channels": 8},
    theirs=Training(
        {
            "dim": 16,
            "dim_mults": (1, 2),
            "layer_attns": (False, True),
            "layer_cross_attns": (False, True),
            "num_resnet_blocks": 1,
            "text_embed_dim": 32,
            "attn_heads": 2,
        },
        16,
        2,
    ),
    matched={**TWO_LEVELS, "model_channels": 24},
    high={**TWO_BLOCKS, "attention": "cross"},
    sides=((32, 32), (64, 64), (64, 96)),
    most_bytes=8e9,
    compile={"disable": True},
    compile_training=False,
)
