"""The one contract: ``x0_fn(z, timestep) -> Denoised(x0, variance)``.

Whatever samples sees only this: the guided, thresholded estimate of the clean image. What the network predicts,
classifier-free guidance and thresholding are settled here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from imagen.diffusion.guidance import guide
from imagen.diffusion.parameterization import check_prediction_type, x0_from
from imagen.diffusion.schedules import alpha_sigma, log_snr_at
from imagen.diffusion.thresholding import Thresholding


class Denoised(NamedTuple):
    """What x0_fn answers.

    x0: (B, C, H, W), the estimate of the clean image.
    variance: (B, C, H, W) or None; for networks that learned one, the raw output v that puts the log variance of an
        ancestral step between the small (-1) and the large (+1) one (Nichol & Dhariwal 2021, equation 15). It is
        relative to a step, so only the step rule can make a number of it; only ddpm does, the others ignore it.
    """

    x0: Tensor
    variance: Tensor | None = None


class X0Fn(Protocol):
    """z (B, C, H, W) in variance-preserving form and timestep (B,), float in [0, 1000), to :class:`Denoised`."""

    def __call__(self, z: Tensor, timestep: Tensor) -> Denoised: ...


#: A network with its conditions bound: z (B, C, H, W) and timestep (B,) to the raw output (B, C or 2C, H, W).
Predict = Callable[[Tensor, Tensor], Tensor]


def make_x0_fn(
    predict: Predict,
    *,
    prediction_type: str,
    log_snrs: Tensor,
    guidance_scale: float = 1.0,
    thresholding: Thresholding | None = None,
    learned_variance: bool = False,
    correct: Callable[[Tensor], Tensor] | None = None,
) -> X0Fn:
    """Wrap a network into the contract.

    Args:
        predict: the network with text and low-res picture bound. Without guidance it is called with z as it is; with
            guidance once a step with both halves stacked as in diffusers, (2B, ...): the first half unconditional,
            the second conditional.
        prediction_type: what it predicts, "epsilon", "v_prediction" or "sample".
        log_snrs: (num,), the log-SNR of every level of the schedule it was trained on
            (imagen.diffusion.levels.level_log_snrs of its scheduler).
        guidance_scale: the paper's w (equation 2). 1 is off, and then the unconditional half is not computed.
        thresholding: of the guided x0 (paper, section 2.3); None is dynamic, p = 0.995.
        learned_variance: the network has 2C output channels, the second C being Denoised.variance. Guidance acts on the
            first C only; the variance is the conditional half's.
        correct: done last to the limited x0; what :func:`imagen.diffusion.consistency.match_lowres` returns.

    Returns:
        An :class:`X0Fn`. It works in the dtype of z, which is float32 in the cascade, whatever dtype the network
        answers in.

    Raises:
        ValueError: an unknown prediction_type, a guidance_scale that is not finite; when called, an output whose shape
            does not fit.
    """
    check_prediction_type(prediction_type)
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale={guidance_scale} is not finite; 1 is off, 5 to 10 is usual")
    limit = thresholding or Thresholding()

    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        channels = z.shape[1]
        out_channels = 2 * channels if learned_variance else channels
        if guidance_scale == 1:
            conditional = _call(predict, z, timestep, out_channels)
            output = conditional[:, :channels]
        else:
            both = _call(predict, torch.cat([z, z]), torch.cat([timestep, timestep]), out_channels)
            unconditional, conditional = both.chunk(2)
            output = guide(conditional[:, :channels], unconditional[:, :channels], guidance_scale)
        alpha, sigma = alpha_sigma(log_snr_at(timestep, log_snrs))
        x0 = limit(x0_from(prediction_type, output, z, alpha, sigma))
        x0 = x0 if correct is None else correct(x0)
        return Denoised(x0, conditional[:, channels:] if learned_variance else None)

    return x0_fn


def _call(predict: Predict, z: Tensor, timestep: Tensor, channels: int) -> Tensor:
    """predict's answer in the dtype of z, its shape checked."""
    output = predict(z, timestep)
    expected = (z.shape[0], channels, *z.shape[2:])
    if tuple(output.shape) != expected:
        raise ValueError(
            f"the network answered {tuple(output.shape)}, expected {expected}; a network that learned its variance has "
            "2C output channels and needs learned_variance=True"
        )
    return output.to(z.dtype)
