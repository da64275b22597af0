"""DeepFloyd IF's configurations, both ways: UNet2DConditionModel <-> BaseUNet, scheduler <-> a stage's defaults."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel

from imagen.checks import check_choice, check_int, check_number

PLAIN_DOWN, TEXT_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
PLAIN_UP, TEXT_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"
#: What every network of the family has where UNet2DConditionModel's default is another.
FIXED = {
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "resnet_time_scale_shift": "scale_shift",
    "cross_attention_norm": "group_norm",
}
#: Entries that are arguments of BaseUNet under another name.
RENAMED = {
    "layers_per_block": "num_res_blocks",
    "attention_head_dim": "head_dim",
    "encoder_hid_dim": "text_dim",
    "cross_attention_dim": "text_proj_dim",
    "addition_embed_type_num_heads": "pool_heads",
    "time_embedding_dim": "time_embed_dim",  # both make 4 times the channels of the first level of null
    "act_fn": "activation",
    "dropout": "dropout",
    "norm_num_groups": "norm_groups",
}
#: What differs from network to network; all else has the default.
READ = {
    *RENAMED,
    *("sample_size", "in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types"),
    *("class_embed_type", "resnet_skip_time_act", "time_embedding_act_fn"),
    *("resnet_out_scale_factor", "mid_block_scale_factor"),
}
LEVELS = 1000


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _complete(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The configuration with diffusers' defaults, checked where all networks of the family agree."""
    parameters = list(inspect.signature(UNet2DConditionModel.__init__).parameters.values())[1:]
    defaults = {entry.name: entry.default for entry in parameters}
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(f"{where}: {unknown[0]} is no option of UNet2DConditionModel; expected a DeepFloyd IF network")
    values = {name: _plain(value) for name, value in {**defaults, **given}.items()}
    _check_types(values, where)
    for block in values["down_block_types"]:
        if block not in (PLAIN_DOWN, TEXT_DOWN):
            raise ValueError(
                f"{where}: down_block_types holds {block!r}, expected {PLAIN_DOWN} and {TEXT_DOWN}: this is no "
                "pixel-space network of the DeepFloyd IF family (latent diffusion, for one, is not)"
            )
    values["encoder_hid_dim_type"] = values["encoder_hid_dim_type"] or "text_proj"  # what diffusers makes of None
    for name, value in values.items():
        expected = FIXED.get(name, _plain(defaults[name]))
        if name not in READ and value != expected:
            raise ValueError(f"{where}: {name} is {value!r}, expected {expected!r} as in all DeepFloyd IF networks")
    return values


INTEGERS = ("sample_size", "in_channels", "out_channels", "encoder_hid_dim", "norm_num_groups")


def _check_types(values: Mapping[str, Any], where: str) -> None:
    """Numbers are numbers and lists are lists of what they should be."""
    for name in (*INTEGERS, "addition_embed_type_num_heads"):
        check_int(f"{where}: {name}", values[name], 1)
    for name in ("block_out_channels", "down_block_types"):
        if not isinstance(values[name], list) or not values[name]:
            raise ValueError(f"{where}: {name} is {values[name]!r}, expected a list")
    for width in values["block_out_channels"]:
        check_int(f"{where}: block_out_channels", width, 1)
    check_number(f"{where}: resnet_out_scale_factor", values["resnet_out_scale_factor"], 1e-6)
    check_number(f"{where}: dropout", values["dropout"], 0)
    depths, count = values["layers_per_block"], len(values["down_block_types"])
    each = depths if isinstance(depths, list) else [depths] * count
    if len(each) != count or not all(isinstance(depth, int) and depth >= 1 for depth in each):
        raise ValueError(f"{where}: layers_per_block is {depths!r}, expected one number, or {count}")
    check_choice(f"{where}: act_fn", values["act_fn"], ("gelu", "silu"))
    if values["class_embed_type"] not in (None, "timestep"):
        raise ValueError(f"{where}: class_embed_type is {values['class_embed_type']!r}, expected null or 'timestep'")


def _uniform(values: Mapping[str, Any], name: str, where: str) -> int:
    """An entry that diffusers lets differ from level to level, where one number holds for all."""
    entries = values[name] if isinstance(values[name], list) else [values[name]]
    if len(set(entries)) != 1 or not isinstance(entries[0], int):
        raise ValueError(f"{where}: {name} is {values[name]!r}, expected one number for all levels")
    return int(entries[0])


def _check_agreement(values: Mapping[str, Any], where: str) -> None:
    """What entries say of one another."""
    types, channels = values["down_block_types"], values["block_out_channels"]
    mirrored = [TEXT_UP if block == TEXT_DOWN else PLAIN_UP for block in reversed(types)]
    embed_act = values["act_fn"] if values["resnet_skip_time_act"] else None
    image = values["out_channels"] // 2
    wanted = {
        "up_block_types": mirrored,
        "time_embedding_act_fn": embed_act,
        "mid_block_scale_factor": values["resnet_out_scale_factor"],
        "out_channels": 2 * image,
        "in_channels": image if values["class_embed_type"] is None else 2 * image,
    }
    for name, expected in wanted.items():
        if values[name] != expected:
            raise ValueError(f"{where}: {name} is {values[name]!r}, expected {expected!r} beside its other entries")
    if types[-1] != TEXT_DOWN:
        raise ValueError(f"{where}: down_block_types ends with {types[-1]!r}, expected {TEXT_DOWN} at the lowest level")
    if any(width % values["norm_num_groups"] for width in channels):
        raise ValueError(f"{where}: norm_num_groups {values['norm_num_groups']} does not divide {channels}")
    if len(types) != len(channels) or any(width % channels[0] for width in channels):
        raise ValueError(f"{where}: block_out_channels {channels} must be {len(types)} multiples of the first")


def unet_arguments(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments of the :class:`unets.BaseUNet` that a UNet2DConditionModel of the IF family is.

    Args:
        config: its ``config.json``.
        where: the file, for messages.

    Raises:
        ValueError: naming the entry that no network of the family has, and what was expected.
    """
    values = _complete(config, where)
    _check_agreement(values, where)
    values |= {name: _uniform(values, name, where) for name in ("attention_head_dim", "cross_attention_dim")}
    channels = values["block_out_channels"]
    image = values["out_channels"] // 2
    return {
        "in_channels": image,
        "out_channels": 2 * image,
        "lowres_channels": 0 if values["class_embed_type"] is None else image,
        "model_channels": channels[0],
        "channel_mult": [width // channels[0] for width in channels],
        "attention_levels": [i for i, block in enumerate(values["down_block_types"]) if block == TEXT_DOWN],
        "text_norm": "group",
        "text_pooling": "attention",
        "residual_scale": 1 / values["resnet_out_scale_factor"],
        **{ours: values[theirs] for theirs, ours in RENAMED.items()},
    }


#: Options of BaseUNet that diffusers' network does not have, and the value that it amounts to.
OURS_ALONE = {
    "patch_size": 1,
    "text_norm": "group",
    "text_pooling": "attention",
    "input_skip": False,
    "head_channels": None,
}


def unet2d_config(config: Mapping[str, Any], sample_size: int, where: str) -> dict[str, Any]:
    """The UNet2DConditionModel that a BaseUNet of the IF family is: the inverse of :func:`unet_arguments`.

    Raises:
        ValueError: naming an option that diffusers' network does not have.
    """
    image, lowres = config["in_channels"], config["lowres_channels"]
    wanted = {**OURS_ALONE, "out_channels": 2 * image, "lowres_channels": image if lowres else 0}
    for name, value in wanted.items():
        if config[name] != value:
            raise ValueError(f"{where}: {name} is {config[name]!r}; IF's pipelines can only hold {value!r}")
    for name in ("text_dim", "text_proj_dim", "pool_heads"):
        if config[name] is None:
            raise ValueError(
                f"{where}: {name} is null; IF's pipelines need a network with projected text, and a number"
            )
    attention, count = set(config["attention_levels"]), len(config["channel_mult"])
    if count - 1 not in attention:
        raise ValueError(f"{where}: attention_levels {sorted(attention)} leaves out the lowest level, which IF's has")
    factor = 1 / config["residual_scale"]
    return {
        "sample_size": sample_size,
        "in_channels": image + lowres,
        "out_channels": 2 * image,
        "block_out_channels": [config["model_channels"] * mult for mult in config["channel_mult"]],
        "down_block_types": [TEXT_DOWN if i in attention else PLAIN_DOWN for i in range(count)],
        "up_block_types": [TEXT_UP if i in attention else PLAIN_UP for i in reversed(range(count))],
        "resnet_out_scale_factor": factor,
        "mid_block_scale_factor": factor,
        # ours applies the activation to the embedding once for all blocks; said here as each stage was released
        "resnet_skip_time_act": bool(lowres),
        "time_embedding_act_fn": config["activation"] if lowres else None,
        "class_embed_type": "timestep" if lowres else None,
        **{theirs: config[ours] for theirs, ours in RENAMED.items()},
        **FIXED,
    }


def stage_settings(scheduler: Mapping[str, Any], size: int, lowres_size: int | None, where: str) -> dict[str, Any]:
    """A stage's stored defaults: thresholding from its scheduler, the rest what IF's pipelines do unasked.

    Args:
        scheduler: the config of its DDPMScheduler.
        size, lowres_size: of the picture it makes, and of the one it starts from.

    Raises:
        ValueError: naming the entry that no stage of the family has.
    """
    wanted = {"prediction_type": "epsilon", "num_train_timesteps": LEVELS}
    for name, value in wanted.items():
        if scheduler[name] != value:
            raise ValueError(f"{where}: {name} is {scheduler[name]!r}, expected {value!r}")
    threshold = "dynamic" if scheduler["thresholding"] else "static" if scheduler["clip_sample"] else "none"
    if threshold == "static" and scheduler["clip_sample_range"] != 1:
        raise ValueError(f"{where}: clip_sample_range is {scheduler['clip_sample_range']}, expected 1")
    settings: dict[str, Any] = {
        "size": size,
        "num_inference_steps": 100,
        "guidance_scale": 7.0,
        "threshold": threshold,
        "threshold_p": scheduler["dynamic_thresholding_ratio"],
        "threshold_cap": float(scheduler["sample_max_value"]),
    }
    if lowres_size is None:
        return settings
    return {
        **settings,
        "lowres_size": lowres_size,
        "num_inference_steps": 50,
        "guidance_scale": 4.0,
        "aug_level": (250 + 0.5) / LEVELS,  # noise_level 250
        "aug_space": "upsampled",
        "aug_schedule": {"kind": "cosine_discrete"},
        "lowres_mode": "bilinear_corners",
    }
