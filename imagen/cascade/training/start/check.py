"""What can be wrong with a stage's configuration, found before anything is loaded."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from imagen.cascade.adapters import check_targets
from imagen.cascade.plan import check_sampler
from imagen.cascade.runner import Stage
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.export import stage_defaults, stage_scheduler
from imagen.cascade.training.grids.cascade_grid import find_stages
from imagen.cascade.training.inputs.conditions import make_conditions
from imagen.cascade.training.inputs.texts import Texts
from imagen.cascade.training.objective import Objective
from imagen.cascade.training.start.network import check_size, make_unet, set_checkpointing
from imagen.cascade.training.start.origin import Origin, differences
from imagen.errors import ConfigError


def check_before_loading(config: RunConfig, origin: Origin) -> None:
    """Everything that can be wrong with a configuration, found without data, encoder or memory for weights.

    Args:
        origin: what train.init_from says of itself. An adapter is for that stage as it is; all weights together may
            learn to be another, with a warning.

    Raises:
        ConfigError: in one line.
    """
    unet = make_unet(config, device="meta")
    check_size(config, unet)
    set_checkpointing(unet, config.train.gradient_checkpointing)
    assert isinstance(unet, torch.nn.Module)
    try:
        check_targets(unet, config.lora.targets if config.lora.used else ())
    except ValueError as error:
        raise ConfigError(f"lora.targets: {error}") from error
    others = differences(config, origin)
    if others and config.lora.used:
        raise ConfigError(f"{others[0]}, as train.init_from {config.train.init_from!r} was trained")
    if others:
        warnings.warn(
            f"train.init_from {config.train.init_from!r} was trained otherwise: {'; '.join(others)}", stacklevel=3
        )
    try:
        Objective(config.stage)
        make_conditions(config, Texts(config))
        scheduler = stage_scheduler(config)
    except ValueError as error:
        raise ConfigError(f"stage: {error}") from error
    try:
        check_sampler(Stage(config.stage.name, unet, scheduler, stage_defaults(config)))
    except ValueError as error:
        raise ConfigError(f"sampling: {error}") from error
    if config.grid.every and config.grid.cascade is not None:
        find_stages(config)
    text = config.text.encoder if config.text.cache is None else None  # a cache stands in for it
    a_path = text is not None and (text.startswith((".", "/", "~")) or text.count("/") > 1)
    if text is not None and a_path and not Path(text).is_dir():
        raise ConfigError(f"text.encoder {text!r} does not exist: give a folder or Hub id of a T5 or a CLIP")
