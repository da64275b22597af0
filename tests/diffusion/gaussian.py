"""Data whose posterior mean is known: every pixel is N(mean, std^2), so every sampler is a closed formula.

With D = alpha^2 std^2 + sigma^2, the posterior mean is mean + alpha std^2 / D (z - alpha mean), and the whitened state
u = (z - alpha mean) / sqrt(D) is constant along the exact probability-flow ODE.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from imagen.diffusion.denoiser import X0Fn, make_x0_fn
from imagen.diffusion.schedules import Schedule, alpha_sigma, level_log_snrs
from imagen.diffusion.thresholding import Thresholding


@dataclass(frozen=True)
class Straight:
    """log_snr = 4 - 8 t: equal steps in t are equal steps in log-SNR, where high-order samplers show their order."""

    def log_snr(self, t: Tensor) -> Tensor:
        return 4 - 8 * t

    def t(self, log_snr: Tensor) -> Tensor:
        return (4 - log_snr) / 8


@dataclass(frozen=True)
class Limited:
    """A schedule as samplers that step in sigma / alpha are given it: from 40 on it grows no further than to 50."""

    schedule: Any

    def log_snr(self, t: Tensor) -> Tensor:
        found, last = self.schedule.log_snr(t), self.schedule.log_snr(torch.tensor(0.9995, dtype=torch.float64)).item()
        start, end = -2 * math.log(40), -2 * math.log(50)
        if last >= end:
            return found
        beyond = (found - start) / (last - start)
        return torch.where(beyond > 0, start + (end - start) * beyond, found)


@dataclass(frozen=True)
class Gaussian:
    """Mean and standard deviation of every pixel, (1, C, H, W) float64, noised by a schedule."""

    mean: Tensor
    std: Tensor
    schedule: Any  # a Schedule, or what has its log_snr

    @classmethod
    def make(cls, schedule: Schedule, side: int = 4) -> Gaussian:
        generator = torch.Generator().manual_seed(0)
        mean = 0.3 * torch.randn(1, 1, side, side, generator=generator, dtype=torch.float64)
        std = 0.1 + 0.8 * torch.rand(1, 1, side, side, generator=generator, dtype=torch.float64)
        return cls(mean, std, schedule)

    @property
    def limited(self) -> Gaussian:
        """The same data, noised no further than samplers that step in sigma / alpha are given."""
        return replace(self, schedule=Limited(self.schedule))

    def levels(self, timestep: Tensor | float) -> tuple[Tensor, Tensor]:
        """alpha and sigma of timesteps, from the schedule itself; below 0 it is the clean end."""
        timestep = torch.as_tensor(timestep, dtype=torch.float64)
        alpha, sigma = alpha_sigma(self.schedule.log_snr(((timestep + 0.5) / 1000).clamp(min=0)))
        return torch.where(timestep < 0, 1.0, alpha), torch.where(timestep < 0, 0.0, sigma)

    def posterior_mean(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (z - alpha * self.mean)

    def whitened(self, z: Tensor, timestep: float) -> Tensor:
        alpha, sigma = self.levels(timestep)
        return (z - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2).sqrt()

    def turn(self, first: float, second: float) -> Tensor:
        """The cosine of the angle between (alpha std, sigma) at two timesteps: what one DDIM step does to u."""
        (a, s), (b, r) = self.levels(first), self.levels(second)
        c = self.std
        return (a * b * c**2 + s * r) / ((a**2 * c**2 + s**2) * (b**2 * c**2 + r**2)).sqrt()

    def network(self, prediction_type: str) -> Callable[[Tensor, Tensor], Tensor]:
        """A perfect network in one of the three parameterizations."""

        def predict(z: Tensor, timestep: Tensor) -> Tensor:
            alpha, sigma = (c[:, None, None, None] for c in self.levels(timestep))
            x0 = self.posterior_mean(z.double(), alpha, sigma)
            eps = (z.double() - alpha * x0) / sigma
            return {"sample": x0, "epsilon": eps, "v_prediction": alpha * eps - sigma * x0}[prediction_type]

        return predict

    def x0_fn(self, scheduler: Any) -> X0Fn:
        """The contract around a perfect network that predicts what the scheduler's config says."""
        prediction_type = scheduler.config.prediction_type
        predict = self.network(prediction_type)
        return make_x0_fn(
            lambda z, timestep, branches: [predict(z, timestep) for _ in branches],
            prediction_type=prediction_type,
            log_snrs=level_log_snrs(scheduler),
            thresholding=Thresholding("none"),
        )


def trailing(steps: int) -> list[int]:
    """The timesteps of uniform "trailing" spacing, and -1 for the clean end."""
    return [round(1000 * (1 - k / steps)) - 1 for k in range(steps + 1)]
