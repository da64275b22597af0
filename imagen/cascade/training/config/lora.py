"""The section `lora` of a configuration: training a low-rank adapter in place of all weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from imagen.errors import require

ATTENTION = ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out.0")


@dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter (Hu et al. 2021) on some layers of the network in train.init_from, which stays as it is."""

    rank: int | None = None
    """rank of the adapter's matrices; null trains all weights"""
    alpha: float | None = None
    """the adapter's output is multiplied by alpha/rank; null takes rank, a factor of 1"""
    targets: tuple[str, ...] = ATTENTION
    """layers to adapt, linear ones and convolutions, by the end of their names; default: all of attention"""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the frozen weights, and so of the network's arithmetic; the adapter itself has train.dtype"""

    @property
    def used(self) -> bool:
        """Whether an adapter is trained."""
        return self.rank is not None

    @property
    def scale(self) -> float:
        """alpha, with its default filled in."""
        return float(self.rank or 1) if self.alpha is None else self.alpha

    def __post_init__(self) -> None:
        rank, alpha = self.rank, self.alpha
        require(
            rank is None or rank > 0, f"lora.rank {rank} must be positive: 4 to 64 is usual, null trains all weights"
        )
        good = alpha is None or (alpha > 0 and math.isfinite(alpha))
        require(good, f"lora.alpha {alpha} must be a positive number, or null for lora.rank")
        require(bool(self.targets), "lora.targets is empty: name layers to adapt, such as to_q")
        for name in ("alpha", "targets", "base_dtype"):
            value = getattr(self, name)
            unread = rank is None and value != type(self).__dataclass_fields__[name].default
            require(
                not unread, f"lora.{name} {value!r} has no effect without lora.rank: set lora.rank, or leave it out"
            )
