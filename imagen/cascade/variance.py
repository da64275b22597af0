"""Leaving a learned variance behind, as DeepFloyd IF's stages have one."""

from __future__ import annotations

from typing import Any

from diffusers.utils import logging
from torch import nn

from imagen.checks import check_choice
from imagen.stages.spec import SLOTS

logger = logging.get_logger(__name__)


def learns_variance(config: Any) -> bool:
    """Whether a network of this config says a variance beside what it predicts: two numbers for each of its input."""
    return bool(config.out_channels == 2 * config.in_channels)


def drop_variance(pipe: Any, slot: str = "base") -> None:
    """Cut the channels of the learned variance off a stage's output layer, and tell its scheduler, for good.

    ddpm then steps with the small variance; other samplers never read the learned one. It is what an adapter wants that
    was trained with ``train.drop_variance``: the old variance was learned on features that the adapter changes.

    Args:
        pipe: an ImagenPipeline.

    Raises:
        ValueError: no such stage, or one that learned no variance, or whose output layer an adapter changes.
    """
    unet = getattr(pipe, f"{check_choice('stage', slot, SLOTS)}_unet")
    if unet is None or not learns_variance(unet.config):
        raise ValueError(f"stage {slot!r} has no learned variance to drop; its network is not there, or has none")
    old = unet.conv_out
    if not isinstance(old, nn.Conv2d):
        raise ValueError(f"the adapter of stage {slot!r} changes its output layer; merge or unload it first")
    rows = old.out_channels // 2
    new = nn.Conv2d(old.in_channels, rows, 3, padding=1, device=old.weight.device, dtype=old.weight.dtype)
    new.load_state_dict({name: value[:rows] for name, value in old.state_dict().items()})
    unet.conv_out = new
    unet.register_to_config(out_channels=unet.config.in_channels)
    scheduler = getattr(pipe, f"{slot}_scheduler")
    if "variance_type" in scheduler.config:
        scheduler = type(scheduler).from_config(scheduler.config, variance_type="fixed_small")
        setattr(pipe, f"{slot}_scheduler", scheduler)
    logger.warning(f"{slot}: the learned variance is dropped ({2 * rows} -> {rows} rows at the output), fixed_small")
