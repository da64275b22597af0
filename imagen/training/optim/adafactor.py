"""Adafactor with the axes and the defaults of optax, which the paper's base stage was trained with (section 4.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MIN_DIM, DECAY, CLIP, EPS = 128, 0.8, 1.0, (1e-30, 1e-3)  # optax's defaults


class Adafactor(torch.optim.Optimizer):
    """Adafactor (Shazeer & Stern 2018) as `optax.adafactor` has it: a gradient over its root mean square, in updates
    that are relative to the size of the parameter.

    The mean square of a tensor whose two largest axes have at least `MIN_DIM` elements is kept as its means over either
    of them. torch's own class takes the last two axes of any tensor: of a convolution (O, I, 3, 3) that is the kernel,
    and two thirds of the memory stay; here it is O and I, and about 9 (O + I) numbers do.

    With g the gradient, v the mean square, t = 1, 2, ... and rms the root mean square of a tensor's elements:

        v <- b v + (1 - b) (g^2 + EPS[0]),   b = 1 - t^-DECAY
        u = g / sqrt(v);   u <- u / max(1, rms(u) / CLIP)
        u <- lr max(rms(parameter), EPS[1]) u, averaged with `momentum` where there is one
        parameter <- parameter - u - lr weight_decay parameter

    The last term is decoupled decay as AdamW has it; optax's is not multiplied by the learning rate.

    Args:
        params: parameters, or groups of them.
        lr: relative step: 1e-4 moves a parameter by up to 1e-4 of its root mean square.
        momentum: decay of the running mean of the updates, without correction of its start; None: none is kept.
        weight_decay: as above.
    """

    def __init__(self, params: Any, lr: float, momentum: float | None = None, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "the loss is not evaluated again"
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        axes = factored_axes(p.shape)
        if not state:
            self._start(p, axes, group["momentum"])
        state["step"] += 1
        fresh = float(state["step"]) ** -DECAY  # the share of this gradient: all of it at first
        update = grad * scale(state, grad.square().add_(EPS[0]), axes, fresh)
        update.div_((rms(update) / CLIP).clamp_(min=1.0))
        update.mul_(group["lr"] * rms(p).clamp_(min=EPS[1]))
        if group["momentum"] is not None:
            update = state["momentum"].lerp_(update, 1 - group["momentum"])
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update)

    def _start(self, p: Tensor, axes: tuple[int, int] | None, momentum: float | None) -> None:
        state = self.state[p]
        state["step"] = torch.zeros((), dtype=torch.float32)  # on the CPU, where it is read
        if axes is None:
            state["square"] = torch.zeros_like(p)
        else:
            for name, axis in zip(("rows", "columns"), axes, strict=True):
                state[name] = torch.zeros_like(p.mean(dim=axis, keepdim=True))
        if momentum is not None:
            state["momentum"] = torch.zeros_like(p)


def factored_axes(shape: torch.Size) -> tuple[int, int] | None:
    """The two largest axes; None where there is one, or the smaller has fewer than `MIN_DIM` elements."""
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    if len(shape) < 2 or shape[order[-2]] < MIN_DIM:
        return None
    return order[-1], order[-2]


def scale(state: dict[str, Tensor], square: Tensor, axes: tuple[int, int] | None, fresh: float) -> Tensor:
    """1 / sqrt(mean square), after `square` has entered the running means of `state` with the share `fresh`.

    Factored, the mean square is the product of its means over either axis, over its mean over both.
    """
    if axes is None:
        return state["square"].lerp_(square, fresh).rsqrt()
    rows = state["rows"].lerp_(square.mean(dim=axes[0], keepdim=True), fresh)
    columns = state["columns"].lerp_(square.mean(dim=axes[1], keepdim=True), fresh)
    return (rows / rows.mean(dim=axes[1], keepdim=True)).rsqrt() * columns.rsqrt()


def rms(x: Tensor) -> Tensor:
    """Root mean square of the elements, a scalar."""
    return x.square().mean().sqrt()
