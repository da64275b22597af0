"""The section `optim` of a configuration: what updates the weights, and how fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from imagen.errors import require


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and the learning rate."""

    kind: Literal["adamw", "adafactor", "adam8bit"] = "adamw"
    """adamw (with muon_lr: Muon and AdamW), adafactor (the paper's base stage) or adam8bit (AdamW with 8-bit
    running means: needs bitsandbytes and a CUDA GPU)"""
    lr: float = 1e-4
    """peak learning rate (the paper: 1e-4 for every stage); adafactor multiplies it by each parameter's root mean
    square"""
    muon_lr: float | None = None
    """peak learning rate of Muon, which then trains all weights of two or more axes but those of the first and the
    last convolution; null: AdamW trains everything"""
    betas: tuple[float, float] = (0.9, 0.99)
    """decay of the running mean and of the running square of the gradient (the paper's SR stages: 0.9, 0.999); not of
    adafactor, which has its own"""
    momentum: float | None = None
    """for adafactor: average updates with this decay, at the cost of a copy of the weights; null (the paper): none"""
    eps: float = 1e-8
    """added to the root of the running square; not of adafactor, which has its own"""
    weight_decay: float = 0.0
    """decoupled decay, on weights of two or more axes only (biases and norms are left alone)"""
    warmup: int = 1000
    """steps of linear warm-up (the paper: 10,000)"""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """shape of the learning rate after the warm-up"""
    hold: int = 0
    """steps at the peak between the warm-up and the decay"""
    clip_norm: float | None = 1.0
    """gradients are scaled down to this global norm; null for no clipping"""

    def __post_init__(self) -> None:
        require(self.lr >= 0 and math.isfinite(self.lr), f"optim.lr {self.lr} must be zero or a positive number")
        require(
            self.muon_lr is None or (self.muon_lr > 0 and math.isfinite(self.muon_lr)),
            f"optim.muon_lr {self.muon_lr} must be a positive number, or null for AdamW alone",
        )
        require(self.eps > 0 and math.isfinite(self.eps), f"optim.eps {self.eps} must be a positive number, as 1e-8")
        require(all(0 <= b < 1 for b in self.betas), f"optim.betas {self.betas} must lie in [0, 1)")
        momentum = self.momentum
        require(momentum is None or 0 <= momentum < 1, f"optim.momentum {momentum} must lie in [0, 1), or be null")
        require(self.weight_decay >= 0, f"optim.weight_decay {self.weight_decay} must not be negative")
        require(self.warmup >= 0, f"optim.warmup {self.warmup} must not be negative")
        require(self.hold >= 0, f"optim.hold {self.hold} must not be negative")
        require(
            self.clip_norm is None or self.clip_norm > 0, f"optim.clip_norm {self.clip_norm} must be positive or null"
        )
        self._check_unread()

    def _check_unread(self) -> None:
        """An option of another optimizer is a mistake, not something to pass over."""
        adam = ("adamw", "adam8bit")
        readers = {"muon_lr": ("adamw",), "betas": adam, "eps": adam, "momentum": ("adafactor",)}
        for name, kinds in readers.items():
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            require(
                value == default or self.kind in kinds,
                f"optim.{name} {value} is of kind {' or '.join(kinds)}, and optim.kind is {self.kind}: leave it out",
            )
