"""The optimizer and its learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from imagen.training.config import OptimConfig


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over the parameters that require gradients; weight decay on those of two or more axes only.

    The kernel is fused where torch has one for the parameters' device, which takes a single pass over the weights.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{type(module).__name__} has no parameter that requires a gradient: nothing would train")
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=fused
    )


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of update number `step` (from 0) of `steps`.

    Linear warm-up, then `hold` steps at the peak, then constant, or falling to 0 at `steps` along a line or half a
    cosine; the values of diffusers' schedules of those names where `hold` is 0. A function of the step alone: resuming
    needs no scheduler state, and the number of processes changes nothing.
    """
    if step < config.warmup:
        return config.lr * step / config.warmup
    start = config.warmup + config.hold
    if config.schedule == "constant" or step < start:
        return config.lr
    done = min(1.0, (step - start) / max(1, steps - start))
    return config.lr * (1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
