"""UniPC (Zhao et al. 2023, arXiv 2302.04867) with its coefficients on the CPU.

diffusers has them on the device: each step copies a few numbers there and solves two equations, and the host waits for
all of it. Here is only the form that is sampled with: for x0 estimates, B(h) = e^h - 1 ("bh2"), of order 1 or 2.
"""

from __future__ import annotations

from typing import Any

import torch

# ConfigMixin and SchedulerMixin are named here because diffusers looks them up in the module of a component.
from diffusers import ConfigMixin, SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor


class HostUniPCScheduler(UniPCMultistepScheduler, SchedulerMixin, ConfigMixin):
    """diffusers' scheduler but for the two updates. Not saved."""

    def multistep_uni_p_bh_update(self, model_output: Tensor, *given: Any, sample: Tensor, order: int) -> Tensor:
        """The state at the next level, from that of this one (B, C, H, W): the predictor."""
        x0, i = self.model_outputs[-1], self.step_index
        base, weight, *_ = self._between(i, i + 1, x0, sample)
        if order == 1:
            return base.to(sample.dtype)
        slope = (self.model_outputs[-2] - x0) / self._ratio(i, i + 1, i - 1)
        return (base - weight * (0.5 * slope)).to(sample.dtype)

    def multistep_uni_c_bh_update(
        self, this_model_output: Tensor, *given: Any, last_sample: Tensor, this_sample: Tensor, order: int
    ) -> Tensor:
        """The state at this level again, from that of the last one and this one's estimate: the corrector."""
        x0, i = self.model_outputs[-1], self.step_index
        base, weight, h, phi = self._between(i - 1, i, x0, last_sample)
        change = this_model_output - x0
        if order == 1:
            return (base - weight * (0.5 * change)).to(last_sample.dtype)
        ratio = self._ratio(i - 1, i, i - 2)
        first = phi / -h - 1
        sides = torch.stack([first / phi, (first / -h - 0.5) * 2 / phi])
        one = torch.ones_like(ratio)
        powers = torch.stack([one, one, ratio, one]).reshape(2, 2)
        rho = torch.linalg.solve(powers, sides).to(last_sample.dtype)
        slope = (self.model_outputs[-2] - x0) / ratio
        return (base - weight * (rho[0] * slope + rho[1] * change)).to(last_sample.dtype)

    def _level(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and half the log-SNR of level i, on the CPU."""
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[i])
        return alpha, sigma, torch.log(alpha) - torch.log(sigma)

    def _between(self, i: int, j: int, x0: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From level i to j: DDIM's step, the weight of what is taken off it, h, and e^-h - 1."""
        (_, sigma_i, half_i), (alpha_j, sigma_j, half_j) = self._level(i), self._level(j)
        h = half_j - half_i
        phi = torch.expm1(-h)
        weight = alpha_j * phi
        return sigma_j / sigma_i * state - weight * x0, weight, h, phi

    def _ratio(self, i: int, j: int, before: int) -> Tensor:
        """How far the level before i is, in steps from i to j: negative."""
        start = self._level(i)[2]
        return (self._level(before)[2] - start) / (self._level(j)[2] - start)
