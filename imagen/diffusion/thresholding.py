"""Static and dynamic thresholding of the x0 estimate (paper, section 2.3 and figure A.31)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from imagen.checks import check_choice
from imagen.diffusion.vocabulary import ThresholdKind


def quantile(values: Tensor, p: float) -> Tensor:
    """The p-quantile of every row, linearly interpolated: torch.quantile(values, p, dim=1), without its limits.

    torch.quantile sorts, and refuses more than 2^24 values; this selects from the nearer end, which is what p = 0.995
    makes cheap, and computes the rank in float64.

    Args:
        values: (B, N), floating point.
        p: in [0, 1].

    Returns:
        (B,), the dtype of ``values``.
    """
    count = values.shape[1]
    position = p * (count - 1)
    low = min(math.floor(position), max(count - 2, 0))
    if low >= count // 2:
        chosen = values.topk(count - low, dim=1).values  # falling: [-1] is rank low, [-2] the one above it
        below, above = chosen[:, -1], chosen[:, max(chosen.shape[1] - 2, 0)]
    else:
        chosen = values.topk(min(low + 2, count), dim=1, largest=False).values
        below, above = chosen[:, low], chosen[:, -1]
    return torch.lerp(below, above, position - low)


@dataclass(frozen=True)
class Thresholding:
    """What keeps an x0 estimate inside [-1, 1]; call it with x0.

    Attributes:
        kind: "none" leaves it alone, "static" clips to [-1, 1], "dynamic" clips to [-s, s] and divides by s, where s is
            the p-quantile of the absolute values of that image, over channels and pixels, and at least 1.
        p: the quantile of "dynamic", in (0, 1]; 0.995 is the paper's only number (figure A.10), 0.95 DeepFloyd IF's.
        cap: the largest s of "dynamic", at least 1; None, the paper, is no limit. IF uses 1.5 at 64 px, and 1.0 in its
            super-resolution stages, which is static thresholding.

    Raises:
        ValueError: an unknown kind, p outside (0, 1], or a cap below 1.
    """

    kind: ThresholdKind = "dynamic"
    p: float = 0.995
    cap: float | None = None

    def __post_init__(self) -> None:
        check_choice("thresholding", self.kind, get_args(ThresholdKind))
        if not 0 < self.p <= 1:
            raise ValueError(f"thresholding quantile p={self.p} is outside (0, 1]; the paper uses 0.995")
        if self.cap is not None and not self.cap >= 1:
            raise ValueError(
                f"thresholding cap={self.cap} is below 1, the edge of the data; use 1 or more, or None for no cap"
            )

    def __call__(self, x0: Tensor) -> Tensor:
        """The guided estimate (B, C, H, W) -> the same shape and dtype."""
        if self.kind == "none":
            return x0
        if self.kind == "static":
            return x0.clamp(-1, 1)
        wide = x0.to(torch.promote_types(x0.dtype, torch.float32))
        scale = quantile(wide.abs().flatten(1), self.p).clamp(min=1.0, max=self.cap)
        scale = scale.reshape(-1, *[1] * (x0.ndim - 1))
        return (wide.clamp(-scale, scale) / scale).to(x0.dtype)
