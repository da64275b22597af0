"""Noise schedules in continuous time, as log-SNR, and their export to the 1000 levels diffusers works with.

Time is ``t`` in [0, 1] inside the mathematics (0 clean, 1 noise) and ``timestep`` in [0, 1000) at a network or a
scheduler; level ``i`` of 1000 is ``t = (i + 1/2) / 1000``. Everything is variance preserving:
``alpha^2 = sigmoid(log_snr)`` and ``sigma^2 = sigmoid(-log_snr)`` (paper, appendix A).

log-SNR is clamped to +-20 by default: a schedule that reaches alpha = 0 or sigma = 0 gives NaN in many samplers. The
clamp is our choice; the paper does not say what it does at the ends.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imagen.checks import check_choice, check_keys

MAX_LOG_SNR = 20.0
NUM_TIMESTEPS = 1000
#: How far the log-SNR that a float32 scheduler rebuilds from exported betas may be from the schedule's own.
MAX_EXPORT_ERROR = 0.05


def _float64(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        raise ValueError(
            f"{name} has dtype {value.dtype}; expected floating point. t lies in [0, 1]: for a timestep in [0, 1000) "
            "call t_from_timestep first."
        )
    return value.double()


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """A falling function log_snr(t) on [0, 1] with its inverse; a subclass gives both in float64, without limits.

    Attributes:
        shift: the resolution factor reference / size: 2 log(shift) is added to the log-SNR, so a shift below 1 is
            noisier (Hoogeboom et al. 2023; not in the paper).
        max_log_snr: the log-SNR is clamped to +- this.
    """

    shift: float = 1.0
    max_log_snr: float = MAX_LOG_SNR

    def __post_init__(self) -> None:
        if not (math.isfinite(self.shift) and self.shift > 0):
            raise ValueError(f"shift={self.shift} is not positive; 1.0 is no shift, 64/256 shifts from 64 to 256 px")
        if not (math.isfinite(self.max_log_snr) and self.max_log_snr > 0):
            raise ValueError(f"max_log_snr={self.max_log_snr} is not a positive number; the default is {MAX_LOG_SNR}")

    @abstractmethod
    def _log_snr(self, t: Tensor) -> Tensor:
        """log-SNR at float64 times ``t`` in [0, 1]."""

    @abstractmethod
    def _t(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`_log_snr`."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log-SNR at times ``t`` in [0, 1] (values outside are clamped), clamped to +-max_log_snr; as ``t``."""
        return self._log_snr(_float64("t", t).clamp(0, 1)).clamp(-self.max_log_snr, self.max_log_snr).to(t.dtype)

    def t(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`, in [0, 1]; shape and dtype of ``log_snr``."""
        limited = _float64("log_snr", log_snr).clamp(-self.max_log_snr, self.max_log_snr)
        return self._t(limited).clamp(0, 1).to(log_snr.dtype)

    def steepness(self, t: Tensor) -> Tensor:
        """-d log_snr / dt at times ``t`` in [0, 1]: at least 0, float64, of any shape; 0 where log-SNR is clamped.

        Its inverse is the density of log-SNR when ``t`` is drawn evenly.
        """
        time = t.detach().double().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.log_snr(time).sum(), time)
        return -slope.nan_to_num(nan=0.0)  # an infinite slope under the clamp counts as the clamp's, which is 0


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """alpha_bar(t) = cos^2((t + s) / (1 + s) * pi/2): the paper's "cosine" (appendix F.1, F.2).

    ``s = 0.008`` is from Nichol & Dhariwal 2021; whether Imagen keeps it is not said.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.s) and self.s >= 0):
            raise ValueError(f"s={self.s} must be 0 or more; the usual value is 0.008")

    def _log_snr(self, t: Tensor) -> Tensor:
        angle = (t + self.s) / (1 + self.s) * (math.pi / 2)
        return 2 * math.log(self.shift) - 2 * torch.log(torch.tan(angle))

    def _t(self, log_snr: Tensor) -> Tensor:
        angle = torch.atan(torch.exp(math.log(self.shift) - log_snr / 2))
        return angle * (2 / math.pi) * (1 + self.s) - self.s


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """The linear-beta schedule of 1000 steps in continuous time: the paper's 256 -> 1024 stage (appendix F.3).

    The limit of betas rising linearly from ``beta_start`` to ``beta_end`` is alpha_bar(t) = exp(-(a t + b t^2)) with
    a = 1000 beta_start and b = 500 (beta_end - beta_start): exp(-(0.1 t + 9.95 t^2)) by default.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end}: expected 0 < beta_start <= beta_end < 1; "
                "the usual pair is 1e-4 and 0.02"
            )

    def _coefficients(self) -> tuple[float, float]:
        return NUM_TIMESTEPS * self.beta_start, NUM_TIMESTEPS * (self.beta_end - self.beta_start) / 2

    def _log_snr(self, t: Tensor) -> Tensor:
        a, b = self._coefficients()
        return 2 * math.log(self.shift) - torch.log(torch.expm1(a * t + b * t * t))

    def _t(self, log_snr: Tensor) -> Tensor:
        a, b = self._coefficients()
        minus_log_alpha_bar = F.softplus(2 * math.log(self.shift) - log_snr, threshold=50.0)
        return 2 * minus_log_alpha_bar / (a + torch.sqrt(a * a + 4 * b * minus_log_alpha_bar))


@dataclass(frozen=True)
class DiscreteCosineSchedule(CosineSchedule):
    """The cosine of 1000 levels (Nichol & Dhariwal 2021, equation 17), which DeepFloyd IF's stages were trained on.

    diffusers calls it "squaredcos_cap_v2". Level i has the alpha_bar of t = (i + 1) / 1000 over that of t = 0, and no
    beta is above 0.999; between the levels log-SNR is linear.
    """

    def levels(self) -> Tensor:
        """log-SNR (1000,), float64, of the levels."""
        edges = torch.arange(NUM_TIMESTEPS + 1, dtype=torch.float64) / NUM_TIMESTEPS
        alpha_bar = torch.cos((edges + self.s) / (1 + self.s) * (math.pi / 2)).square()
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
        return log_snr_from_betas(betas) + 2 * math.log(self.shift)

    def _log_snr(self, t: Tensor) -> Tensor:
        return log_snr_at(timestep_from_t(t), self.levels())

    def _t(self, log_snr: Tensor) -> Tensor:
        return t_from_timestep(timestep_at(log_snr, self.levels()))

    def steepness(self, t: Tensor) -> Tensor:
        """-d log_snr / dt, float64, from the levels on either side (at both ends from the one there is).

        The broken line between the levels has no slope at a level, where training times lie; this is the difference of
        its neighbours, and between two levels the line through theirs.
        """
        time, half = t.detach().double(), 0.5 / NUM_TIMESTEPS
        before = (time - 2 * half).clamp(half, 1 - half)
        after = (time + 2 * half).clamp(half, 1 - half)
        return (self.log_snr(before) - self.log_snr(after)) / (after - before)


_SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": CosineSchedule,
    "linear": LinearSchedule,
    "cosine_discrete": DiscreteCosineSchedule,
}


def make_schedule(kind: str, **options: float) -> Schedule:
    """A schedule by name: "cosine" and "cosine_discrete" (option ``s``), "linear" (``beta_start``, ``beta_end``).

    All have the options of :class:`Schedule`.

    Raises:
        ValueError: an unknown kind, an option that this kind does not have, or a value out of range.
    """
    cls = _SCHEDULES[check_choice("schedule kind", kind, list(_SCHEDULES))]
    check_keys(options, [field.name for field in fields(cls)], f"the {kind} schedule")
    return cls(**options)


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of a variance-preserving process: alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr).

    Computed in float64, returned with the shape and dtype of ``log_snr``.
    """
    wide = log_snr.double()
    return torch.sigmoid(wide).sqrt().to(log_snr.dtype), torch.sigmoid(-wide).sqrt().to(log_snr.dtype)


def timestep_from_t(t: Tensor) -> Tensor:
    """The number a network is given for time ``t`` in [0, 1]: 1000 t - 1/2, clamped to [0, 999.5]; shape of ``t``."""
    return (NUM_TIMESTEPS * t - 0.5).clamp(0, NUM_TIMESTEPS - 0.5)


def t_from_timestep(timestep: Tensor) -> Tensor:
    """The time of a (float or integer) timestep: (timestep + 1/2) / 1000. Integers give float32."""
    return (timestep + 0.5) / NUM_TIMESTEPS


def level_time(t: Tensor) -> Tensor:
    """The time (i + 1/2) / 1000 of the level i that ``t`` in [0, 1) falls into: uniform times to uniform levels."""
    return ((NUM_TIMESTEPS * t).floor() + 0.5) / NUM_TIMESTEPS


def _log_snr_of_levels(schedule: Schedule) -> Tensor:
    return schedule.log_snr((torch.arange(NUM_TIMESTEPS, dtype=torch.float64) + 0.5) / NUM_TIMESTEPS)


def trained_betas(schedule: Schedule) -> list[float]:
    """The betas of a diffusers scheduler that has the schedule's log-SNR at t = (i + 1/2) / 1000, i = 0 ... 999.

    The export is checked in log-SNR, rebuilt in float32 as diffusers does it: near a clean end 1 - alpha_bar loses its
    digits there, which no comparison of alpha_bar shows.

    Raises:
        ValueError: the schedule is flat somewhere (samplers divide by the difference of two log-SNRs), or float32
            cannot hold its clean end.
    """
    log_snr = _log_snr_of_levels(schedule)
    flat = int((log_snr.diff() >= 0).sum())
    if flat:
        raise ValueError(
            f"{schedule} does not fall between {flat} pairs of its {NUM_TIMESTEPS} levels, so samplers would divide by "
            "zero; use a larger max_log_snr or a shift nearer to 1"
        )
    log_alpha_bar = F.logsigmoid(log_snr)
    betas = -torch.expm1(torch.diff(log_alpha_bar, prepend=log_alpha_bar.new_zeros(1)))
    result: list[float] = betas.tolist()
    error = export_error(result, schedule)
    if not error <= MAX_EXPORT_ERROR:
        raise ValueError(
            f"{schedule}: a float32 scheduler would be off by {error:.3g} in log-SNR (at most {MAX_EXPORT_ERROR} is "
            "accepted); its clean end is too clean, use a smaller shift or, for the cosine, a larger s"
        )
    return result


def export_error(betas: Sequence[float], schedule: Schedule) -> float:
    """The largest difference in log-SNR between the schedule and what a float32 scheduler makes of ``betas``."""
    alpha_bar = torch.cumprod(1.0 - torch.tensor(betas, dtype=torch.float32), dim=0)
    rebuilt = (torch.log(alpha_bar) - torch.log(1.0 - alpha_bar)).double()
    return float((rebuilt - _log_snr_of_levels(schedule)).abs().max())


def log_snr_from_betas(betas: Sequence[float] | Tensor) -> Tensor:
    """log-SNR (num,), float64, of the levels of a scheduler with these betas: the inverse of :func:`trained_betas`.

    1 - alpha_bar is accumulated without cancellation. A last beta of 1 (zero terminal SNR) gives -inf there.
    """
    wide = torch.as_tensor(betas, dtype=torch.float64)
    log_alpha_bar = torch.cumsum(torch.log1p(-wide), dim=0)
    return log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))


def level_log_snrs(scheduler: Any) -> Tensor:
    """log-SNR (num_train_timesteps,), float64, of a diffusers scheduler's levels, from its betas.

    A level without any signal (zero terminal SNR) is given -20.
    """
    exact = scheduler.config.get("trained_betas")
    if exact is None or scheduler.config.get("rescale_betas_zero_snr"):
        exact = scheduler.betas
    log_snrs = log_snr_from_betas(exact)
    return log_snrs.masked_fill(torch.isneginf(log_snrs), -MAX_LOG_SNR)


def log_snr_at(timestep: Tensor, log_snrs: Tensor) -> Tensor:
    """log-SNR at float timesteps: linear interpolation, in log-SNR, of a table of levels.

    Args:
        timestep: any shape, 0 is the first level; beyond the last level the last segment is continued.
        log_snrs: (num,), the log-SNR of every level.

    Returns:
        float64 of the shape of ``timestep``, on its device.
    """
    table = log_snrs.to(device=timestep.device, dtype=torch.float64, non_blocking=True)
    position = timestep.double()
    low = position.floor().clamp(0, table.numel() - 2)
    fraction = position - low
    index = low.long()
    return torch.where(fraction == 0, table[index], torch.lerp(table[index], table[index + 1], fraction))


def timestep_at(log_snr: Tensor, log_snrs: Tensor) -> Tensor:
    """The float timestep at which a table has ``log_snr``: the inverse of :func:`log_snr_at`, clamped to the table.

    Args:
        log_snr: any shape.
        log_snrs: (num,), strictly falling.
    """
    table = log_snrs.to(device=log_snr.device, dtype=torch.float64, non_blocking=True)
    value = log_snr.double().clamp(table[-1], table[0])
    high = torch.searchsorted(-table, -value).clamp(1, table.numel() - 1)
    left, right = table[high - 1], table[high]
    return (high - 1) + (left - value) / (left - right)
