"""The training loss: a squared error with a weight that is a function of log-SNR.

Weights are stated on the eps loss, as in the paper (appendix A), whatever the network predicts. At fixed z the three
errors are multiples of each other,

    |eps - eps^|^2 = SNR |x0 - x0^|^2 = alpha^2 |v - v^|^2,

so the weight on the network's own loss is the stated one times 1, SNR or alpha^2. It is computed in log space, which
keeps every form exact at both ends of the schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from imagen.checks import check_choice
from imagen.diffusion.parameterization import training_target
from imagen.diffusion.schedules import alpha_sigma
from imagen.diffusion.vocabulary import WeightingKind


@dataclass(frozen=True)
class LossWeighting:
    """Which weight the eps loss carries.

    uniform: 1, the paper's loss. min_snr: min(SNR, gamma) / SNR (Hang et al. 2023; gamma 5 is theirs).
    clamped_snr: clamp(SNR, low, gamma) / SNR, that is clamp(SNR, low, gamma) on the x0 loss, so that the noisiest
    levels keep a weight; our choice. sigmoid: sigmoid(bias - log_snr), that is exp(bias) sigmoid(log_snr - bias) on the
    x0 loss: a min_snr without its corner, gamma exp(bias) (Kingma & Gao 2023; Hoogeboom et al. 2024). Both papers state
    it per unit of log-SNR; for times drawn evenly, multiply by half of the schedule's ``steepness``.

    Raises:
        ValueError: an unknown kind, a bound out of order, or an option that the kind does not read.
    """

    kind: WeightingKind = "uniform"
    gamma: float = 5.0
    low: float = 0.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        check_choice("loss weighting", self.kind, get_args(WeightingKind))
        if self.kind in ("uniform", "sigmoid") and self.gamma != 5.0:
            raise ValueError(f"gamma={self.gamma} has no effect on {self.kind}; set kind to min_snr or drop it")
        if self.kind != "sigmoid" and self.bias != 0.0:
            raise ValueError(f"bias={self.bias} has no effect on {self.kind}; set kind to sigmoid or drop it")
        if not math.isfinite(self.bias):
            raise ValueError(f"bias={self.bias} is not a finite number; 0 puts the middle of the sigmoid at SNR 1")
        if self.kind != "clamped_snr" and self.low != 0.0:
            raise ValueError(f"low={self.low} has no effect on {self.kind}; set kind to clamped_snr or drop it")
        if not (math.isfinite(self.gamma) and 0 <= self.low <= self.gamma and self.gamma > 0):
            raise ValueError(f"low={self.low}, gamma={self.gamma}: expected 0 <= low <= gamma and a finite gamma > 0")

    def log_weight(self, log_snr: Tensor) -> Tensor:
        """log of the weight on the eps loss at ``log_snr``, float64, of any shape."""
        if self.kind == "uniform":
            return torch.zeros_like(log_snr)
        if self.kind == "sigmoid":
            return F.logsigmoid(self.bias - log_snr)
        low = math.log(self.low) if self.low > 0 else -math.inf
        return log_snr.clamp(low, math.log(self.gamma)) - log_snr


def output_weight(prediction_type: str, log_snr: Tensor, weighting: LossWeighting) -> Tensor:
    """The same weighting as a weight on the loss of the network's own output; shape of ``log_snr``, float64.

    min_snr on v is min(SNR, gamma) / (SNR + 1), on x0 min(SNR, gamma): the forms in the literature.
    """
    log_snr = log_snr.double()
    log_weight = weighting.log_weight(log_snr)
    if prediction_type == "sample":
        log_weight = log_weight + log_snr
    elif prediction_type == "v_prediction":
        log_weight = log_weight + F.logsigmoid(log_snr)
    return log_weight.exp()


def diffusion_loss(
    prediction_type: str,
    output: Tensor,
    x0: Tensor,
    eps: Tensor,
    log_snr: Tensor,
    weighting: LossWeighting | None = None,
) -> Tensor:
    """The weighted squared error of each image, averaged over its axes (paper, section 2.2 and appendix A).

    Args:
        prediction_type: what ``output`` is: "epsilon", "v_prediction" or "sample".
        output: (B, C, H, W), the network's answer for z = alpha x0 + sigma eps.
        x0, eps: (B, C, H, W), the clean image and the noise.
        log_snr: (B,).
        weighting: the weight on the eps loss; None is uniform, the paper's.

    Returns:
        (B,), float32 (float64 for float64 output). The mean over the batch is the caller's.

    Raises:
        ValueError: output and x0 differ in shape, or log_snr is not (B,).
    """
    if output.shape != x0.shape:
        raise ValueError(f"output has shape {tuple(output.shape)} but x0 {tuple(x0.shape)}; expected the same shape")
    if log_snr.shape != x0.shape[:1]:
        raise ValueError(f"log_snr has shape {tuple(log_snr.shape)}; expected one value per image, ({x0.shape[0]},)")
    dtype = torch.promote_types(output.dtype, torch.float32)
    alpha, sigma = alpha_sigma(log_snr.double())
    target = training_target(prediction_type, x0.to(dtype), eps.to(dtype), alpha, sigma)
    error = (output.to(dtype) - target).square().flatten(1).mean(dim=1)
    return error * output_weight(prediction_type, log_snr, weighting or LossWeighting()).to(dtype)
