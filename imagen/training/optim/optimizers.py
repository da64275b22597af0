"""The optimizer and its learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from imagen.training.config.sections import OptimConfig
from imagen.training.optim.adafactor import Adafactor
from imagen.training.optim.muon import muon


def make_optimizer(module: nn.Module, config: OptimConfig, ends: Sequence[str] = ()) -> torch.optim.Optimizer:
    """The optimizer that `config.kind` names over the parameters that require gradients; with AdamW also Muon, where
    `config.muon_lr` is a number: it is for the matrices between the layers at input and output.

    Weight decay acts on weights of two or more axes only. AdamW's kernel is fused where torch has one for the
    parameters' device, which takes a single pass over the weights.

    Args:
        ends: names of the layers at input and output.

    Raises:
        ValueError: nothing in `module` requires a gradient.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError(f"{type(module).__name__} has no parameter that requires a gradient: nothing would train")
    on_muon = config.muon_lr is not None
    outer = tuple(f"{name}." for name in ends)
    hidden = [p for name, p in named if on_muon and p.ndim >= 2 and not name.startswith(outer)]
    taken = {id(p) for p in hidden}
    others = [p for _, p in named if id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": hidden, "weight_decay": config.weight_decay, "muon": True, "peak_lr": config.muon_lr},
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay, "peak_lr": config.lr},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0, "peak_lr": config.lr},
    ]
    filled = [group for group in groups if group["params"]]
    if config.kind == "adafactor":
        return Adafactor(filled, lr=config.lr, momentum=config.momentum)
    if config.kind == "adam8bit":
        from bitsandbytes.optim import AdamW8bit

        eight_bit: torch.optim.Optimizer = AdamW8bit(filled, lr=config.lr, betas=config.betas, eps=config.eps)
        return eight_bit
    fused = named[0][1].device.type in ("cpu", "cuda")
    kind: Callable[..., torch.optim.Optimizer] = MuonAdamW if on_muon else torch.optim.AdamW
    return kind(filled, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the groups that say ``muon=True``, torch's AdamW for the others.

    Muon replaces the momentum of a weight by the nearest orthogonal matrix. It is for matrices: here a convolution is
    one, of its output channels by all else. An update is scaled to the root mean square that AdamW's usually has
    (Liu et al. 2025), so the two learning rates are of one unit.

    Args:
        params: groups of parameters, each with its weight_decay.
        lr, betas, eps: of AdamW; Muon reads lr alone.
        fused: AdamW's kernel in one pass.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, fused: bool) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "fused": fused, "muon": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "the loss is not evaluated again"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["muon"] else self._adamw)(params, group)

    def _state(self, params: Sequence[Tensor], name: str, start: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The tensor of that name of each parameter's state, made by `start` at first use."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = start(p)
        return [self.state[p][name] for p in params]

    def _muon(self, params: Sequence[Tensor], group: dict[str, Any]) -> None:
        momenta = self._state(params, "momentum_buffer", torch.zeros_like)
        changed = [*params, *momenta]
        flat = [tensor.flatten(1) for tensor in changed]
        gradients = [p.grad.flatten(1) for p in params if p.grad is not None]
        muon(flat[: len(params)], gradients, flat[len(params) :], group["lr"], group["weight_decay"])
        for tensor, matrix in zip(changed, flat, strict=True):
            if not tensor.is_contiguous():  # of a channels-last weight the matrix is a copy, and only that was updated
                tensor.copy_(matrix.view(tensor.shape))

    def _adamw(self, params: Sequence[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in params if p.grad is not None]
        means, squares = (self._state(params, name, torch.zeros_like) for name in ("exp_avg", "exp_avg_sq"))
        place = None if group["fused"] else "cpu"  # all kernels but the fused one read its value
        steps = self._state(params, "step", lambda p: torch.zeros((), dtype=torch.float32, device=place or p.device))
        how = {name: group[name] for name in ("lr", "weight_decay", "eps", "fused")}
        how["beta1"], how["beta2"] = group["betas"]
        adamw(list(params), gradients, means, squares, [], steps, amsgrad=False, maximize=False, **how)


def schedule_factor(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of update number `step` (from 0) of `steps`, over its peak: in [0, 1].

    Linear warm-up, then `hold` steps at the peak, then constant, or falling to 0 at `steps` along a line or half a
    cosine; the values of diffusers' schedules of those names where `hold` is 0. A function of the step alone: resuming
    needs no scheduler state, and the number of processes changes nothing.
    """
    if step < config.warmup:
        return step / config.warmup
    start = config.warmup + config.hold
    if config.schedule == "constant" or step < start:
        return 1.0
    done = min(1.0, (step - start) / max(1, steps - start))
    return 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Take over the state that `optimizer.state_dict()` gave in an earlier run; hyperparameters stay as they are now.

    The tensors take their parameter's strides, whatever layout the earlier run had: torch's fused kernels walk through
    memory and would pair a channels-last weight with another element's mean.
    """
    optimizer.load_state_dict({**saved, "param_groups": optimizer.state_dict()["param_groups"]})
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                state[name] = torch.empty_like(p, dtype=value.dtype, device=value.device).copy_(value)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every parameter group its peak learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
