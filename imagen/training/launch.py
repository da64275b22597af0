"""What is settled before a run loads anything: accelerate's plumbing, and a configuration that can run on it."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, is_tensorboard_available

from imagen.cascade.adapters import check_targets
from imagen.errors import ConfigError
from imagen.training.cascade_grid import find_stages
from imagen.training.config import RunConfig
from imagen.training.export import stage_defaults, stage_scheduler
from imagen.training.network import check_size, make_unet, set_checkpointing
from imagen.training.objective import Objective
from imagen.training.origin import Origin, differences


def make_accelerator(config: RunConfig) -> Accelerator:
    """accelerate's plumbing. Raises ConfigError where TensorBoard is asked for and missing."""
    if config.train.tensorboard and not is_tensorboard_available():
        raise ConfigError("train.tensorboard is true but tensorboard is not installed: pip install tensorboard")
    return Accelerator(
        mixed_precision=config.train.mixed_precision,
        log_with="tensorboard" if config.train.tensorboard else None,
        project_dir=config.run_dir,
        step_scheduler_with_optimizer=False,
    )


def check_processes(config: RunConfig, accelerator: Accelerator) -> None:
    """Raises ConfigError for a launch other than data parallel, or a batch that its processes cannot share equally."""
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ConfigError(
            f"launched with {kind.value}, but sharded weights are not supported: use configs/accelerate/ddp.yaml"
        )
    world = accelerator.num_processes
    parts = config.train.accumulation * world
    if config.train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size {config.train.batch_size} is not divisible by {config.train.accumulation} accumulation "
            f"steps x {world} processes: use a multiple of {parts}"
        )


def check_optimizer(config: RunConfig) -> None:
    """Raises ConfigError where optim.kind adam8bit lacks its package, its GPU or weights of a dtype it knows."""
    if config.optim.kind != "adam8bit":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("optim.kind adam8bit needs bitsandbytes: pip install 'bitsandbytes>=0.45', or use adamw")
    if not torch.cuda.is_available():
        raise ConfigError("optim.kind adam8bit needs a CUDA GPU, and torch finds none here: use optim.kind adamw")
    if config.train.dtype == "float64":
        raise ConfigError("optim.kind adam8bit cannot train float64 weights: set train.dtype float32, or use adamw")


def check_before_loading(config: RunConfig, origin: Origin) -> None:
    """Everything that can be wrong with a configuration, found without data, encoder or memory for weights.

    Args:
        origin: what train.init_from says of itself. An adapter is for that stage as it is; all weights together may
            learn to be another, with a warning.

    Raises:
        ConfigError: in one line.
    """
    check_optimizer(config)
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
        stage_scheduler(config)
    except ValueError as error:
        raise ConfigError(f"stage: {error}") from error
    try:
        stage_defaults(config)
    except ValueError as error:
        raise ConfigError(f"sampling: {error}") from error
    if config.grid.every and config.grid.cascade is not None:
        find_stages(config)
    text = config.text.encoder if config.text.cache is None else None  # a cache stands in for it
    a_path = text is not None and (text.startswith((".", "/", "~")) or text.count("/") > 1)
    if text is not None and a_path and not Path(text).is_dir():
        raise ConfigError(f"text.encoder {text!r} does not exist: give a folder or Hub id of a T5 or a CLIP")
