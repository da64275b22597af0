"""A learned variance and its loss: the variational bound, whose gradient reaches the variance alone.

Nichol & Dhariwal 2021 ("iDDPM"): a network with two outputs for every number of the picture says with the second, v,
where the log variance of a step lies between its bounds (equation 15), and is trained on L_simple + 0.001 L_vlb
(equation 16) with the mean held fixed in L_vlb. Imagen learns no variance; DeepFloyd IF's stages do.

A step leads from level t to the one before it, s, 1/1000 earlier; from the first level it leads onto the picture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from imagen.diffusion.parameterization import per_image
from imagen.diffusion.schedules import NUM_TIMESTEPS, Schedule, alpha_sigma, timestep_from_t

BIN = 2 / 255
"""Distance of two values of an 8-bit picture in [-1, 1]."""


def step_log_variances(log_snr_t: Tensor, log_snr_s: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds of a step's log variance: log of (1 - e^(l_t - l_s)) times sigma_s^2 (small) and sigma_t^2 (large).

    They are iDDPM's beta-tilde and beta. Any shape; ``log_snr_s`` above ``log_snr_t``, infinite for the picture itself.
    """
    log_share = torch.log(-torch.expm1(log_snr_t - log_snr_s))
    return log_share + F.logsigmoid(-log_snr_s), log_share + F.logsigmoid(-log_snr_t)


def interpolated_log_variance(v: Tensor, small: Tensor, large: Tensor) -> Tensor:
    """The log variance that ``v`` says: ``small`` at -1, ``large`` at 1 and linear between (equation 15)."""
    share = (v + 1) / 2
    return share * large + (1 - share) * small


def posterior_mean(x0: Tensor, z: Tensor, log_snr_t: Tensor, log_snr_s: Tensor) -> Tensor:
    """The mean of q(z_s | z_t = z, x0), (B, C, H, W); ``log_snr_t`` and ``log_snr_s`` (B,) as above."""
    ratio = torch.exp(log_snr_t - log_snr_s)
    (alpha_t, _), (alpha_s, _) = alpha_sigma(log_snr_t), alpha_sigma(log_snr_s)
    return per_image((1 - ratio) * alpha_s, x0) * x0 + per_image(ratio * alpha_s / alpha_t, z) * z


def gaussian_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N_1 || N_2) of each number, in nats; shapes broadcast."""
    difference = log_variance_2 - log_variance_1
    return 0.5 * (difference - 1 + torch.exp(-difference) + (mean_1 - mean_2).square() * torch.exp(-log_variance_2))


def binned_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of the mass that a Gaussian has in the bin of each 8-bit value ``x`` in [-1, 1], in nats.

    Ho et al. 2020, section 3.3. The outermost bins reach to infinity. A mass below 1e-12 counts as that.
    """
    inverse = torch.exp(-0.5 * log_variance)
    below = torch.special.ndtr((x - mean - BIN / 2) * inverse)
    upto = torch.special.ndtr((x - mean + BIN / 2) * inverse)
    below = torch.where(x < -1 + BIN / 2, torch.zeros_like(below), below)
    upto = torch.where(x > 1 - BIN / 2, torch.ones_like(upto), upto)
    return torch.log((upto - below).clamp(min=1e-12))


def vlb_term(v: Tensor, x0_estimate: Tensor, x0: Tensor, z: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """One term of the variational bound for each picture, in bits per number of the picture (iDDPM, equations 4 to 7).

    KL(q(z_s | z, x0) || p(z_s | z)), or at the first level, timesteps below 1, -log p(x0 | z). Times 1000 at uniform t
    it estimates L_vlb. No gradient reaches ``x0_estimate``: the bound trains the variance alone.

    Args:
        v: (B, C, H, W), the network's second half.
        x0_estimate: (B, C, H, W), the picture that the first half stands for, not thresholded.
        x0, z: (B, C, H, W), the picture and its noisy version at t.
        t: (B,) float64 in [0, 1].
        schedule: of the noise.

    Returns:
        (B,), float32 (float64 for a float64 ``v``).
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    v, estimate, x0, z = v.to(dtype), x0_estimate.detach().to(dtype), x0.to(dtype), z.to(dtype)
    first = timestep_from_t(t) < 1
    log_snr_t = schedule.log_snr(t)
    log_snr_s = torch.where(first, torch.inf, schedule.log_snr(t - 1 / NUM_TIMESTEPS))
    small, large = step_log_variances(log_snr_t, log_snr_s)
    # onto the picture the small variance is 0; as in iDDPM that of the second level stands for it
    second = schedule.log_snr(t + 1 / NUM_TIMESTEPS)
    small = torch.where(first, step_log_variances(second, log_snr_t)[0], small)
    log_variance = interpolated_log_variance(v, per_image(small, v), per_image(large, v))
    mean = posterior_mean(estimate, z, log_snr_t, log_snr_s)
    kl = gaussian_kl(posterior_mean(x0, z, log_snr_t, log_snr_s), per_image(small, v), mean, log_variance)
    nats = torch.where(per_image(first, v) > 0, -binned_log_likelihood(x0, mean, log_variance), kl)
    return nats.flatten(1).mean(dim=1) / math.log(2)
