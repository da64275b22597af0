"""Leaving a learned variance behind, as DeepFloyd IF's stages have one."""

from __future__ import annotations

import copy
from typing import Any

from diffusers.utils import logging
from torch import nn

from imagen.checks import check_choice
from imagen.stages.spec import SLOTS

logger = logging.get_logger(__name__)


def first_rows(layer: nn.Conv2d | nn.Linear, rows: int) -> nn.Conv2d | nn.Linear:
    """The layer with the first ``rows`` of its output alone."""
    cut = copy.deepcopy(layer)
    for name, value in layer.named_parameters():
        setattr(cut, name, nn.Parameter(value.detach()[:rows].clone(), value.requires_grad))
    setattr(cut, "out_channels" if isinstance(cut, nn.Conv2d) else "out_features", rows)
    return cut


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
    if unet is None or not unet.facts.learns_variance:
        raise ValueError(f"stage {slot!r} has no learned variance to drop; its network is not there, or has none")
    old = unet.get_submodule(unet.output_layer)
    if not isinstance(old, nn.Conv2d | nn.Linear):
        raise ValueError(f"the adapter of stage {slot!r} changes its output layer; merge or unload it first")
    rows = len(old.weight) // 2
    setattr(unet, unet.output_layer, first_rows(old, rows))
    unet.register_to_config(out_channels=unet.config.in_channels)
    scheduler = getattr(pipe, f"{slot}_scheduler")
    if "variance_type" in scheduler.config:
        scheduler = type(scheduler).from_config(scheduler.config, variance_type="fixed_small")
        setattr(pipe, f"{slot}_scheduler", scheduler)
    logger.warning(f"{slot}: the learned variance is dropped ({2 * rows} -> {rows} rows at the output), fixed_small")
