"""What a network predicts - eps, v or x0 - and the way back, side by side.

The words are diffusers': "epsilon", "v_prediction", "sample". The paper's networks predict eps (section 2.2, appendix
A); v is Salimans & Ho 2022, used by Imagen Video.

``alpha`` and ``sigma`` are numbers or tensors: (B,) is one value per image, anything else broadcasts as usual.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from imagen.checks import check_choice
from imagen.diffusion.schedules import alpha_sigma
from imagen.diffusion.vocabulary import PredictionType

PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)


def check_prediction_type(prediction_type: str) -> None:
    """Raises ValueError unless ``prediction_type`` is one of the three."""
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)


def per_image(value: float | Tensor, like: Tensor) -> Tensor:
    """``value`` with the dtype and device of ``like`` (B, ...); (B,) gets axes so that it multiplies whole images."""
    tensor = torch.as_tensor(value).to(device=like.device, dtype=like.dtype)
    return tensor.reshape(-1, *[1] * (like.ndim - 1)) if tensor.ndim == 1 else tensor


def training_target(
    prediction_type: str, x0: Tensor, eps: Tensor, alpha: float | Tensor, sigma: float | Tensor
) -> Tensor:
    """What the network should say for z = alpha x0 + sigma eps: eps, v = alpha eps - sigma x0, or x0; (B, C, H, W)."""
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "sample":
        return x0
    return per_image(alpha, x0) * eps - per_image(sigma, x0) * x0


def x0_from(prediction_type: str, output: Tensor, z: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """The clean image that a network output stands for, given z; the inverse of :func:`training_target`.

    epsilon: (z - sigma eps) / alpha (paper, section 2.2); v: alpha z - sigma v; sample: the output itself.
    """
    check_prediction_type(prediction_type)
    if prediction_type == "sample":
        return output
    a, s = per_image(alpha, z), per_image(sigma, z)
    if prediction_type == "epsilon":
        return (z - s * output) / a
    return a * z - s * output


def q_sample(x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """The noisy image z = alpha x0 + sigma eps of q(z | x0) at ``log_snr`` (B,) or (); shape and dtype of ``x0``."""
    alpha, sigma = alpha_sigma(log_snr.double())
    return per_image(alpha, x0) * x0 + per_image(sigma, x0) * eps
