"""The noise levels of a diffusers scheduler: what each timestep means, and at which one a state of its loop lies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from imagen.diffusion.schedules import MAX_LOG_SNR, log_snr_at, log_snr_from_betas, timestep_at


def level_log_snrs(scheduler: Any) -> Tensor:
    """log-SNR (num_train_timesteps,), float64, of a diffusers scheduler's levels, from its betas.

    A level without any signal (zero terminal SNR) is given -20.
    """
    exact = scheduler.config.get("trained_betas")
    if exact is None or scheduler.config.get("rescale_betas_zero_snr"):
        exact = scheduler.betas
    log_snrs = log_snr_from_betas(exact)
    return log_snrs.masked_fill(torch.isneginf(log_snrs), -MAX_LOG_SNR)


def evaluation_timesteps(clone: Any) -> list[float]:
    """The timestep of every evaluation: the list's own, or the fractional one that has the state's noise level."""
    timesteps: list[float] = clone.timesteps.double().tolist()
    if not hasattr(clone, "sigmas"):
        return timesteps
    log_snrs = level_log_snrs(clone)
    wanted = -2 * clone.sigmas[: len(timesteps)].double().log()
    nominal = log_snr_at(torch.tensor(timesteps, dtype=torch.float64), log_snrs)
    exact = timestep_at(wanted, log_snrs)
    return torch.where((nominal - wanted).abs() < 1e-5, clone.timesteps.double(), exact).tolist()
