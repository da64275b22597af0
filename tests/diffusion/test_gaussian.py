"""Every sampler x parameterization on Gaussian data: its own closed form step by step, and its order of convergence."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DPMSolverSinglestepScheduler
from torch import Tensor

from imagen.diffusion.loop import StepRule, sample_loop
from imagen.diffusion.parameterization import PREDICTION_TYPES
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule, LinearSchedule, Schedule
from tests.diffusion.gaussian import Gaussian, Straight, trailing

SCHEDULES = [CosineSchedule(), CosineSchedule(shift=0.25), LinearSchedule()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
every_prediction = pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)


def noise(data: Gaussian, batch: int = 2) -> Tensor:
    shape = (batch, *data.mean.shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


@every_schedule
@every_prediction
@pytest.mark.parametrize("steps", [1, 7, 20, 61])
def test_ddim_turns_the_whitened_state(schedule: Schedule, prediction_type: str, steps: int) -> None:
    """u_s = u_t cos(angle) at each step, so x0 = mean + std u_T times the product of cosines; exact in float64.

    7 and 61 do not divide 1000: the steps must still follow the list of timesteps.
    """
    data = Gaussian.make(schedule)
    z = noise(data)
    scheduler = make_scheduler("ddim", schedule, prediction_type)
    u = data.whitened(z, 999)
    for first, second in pairwise(trailing(steps)):
        u = u * data.turn(first, second)
    out = sample_loop(data.x0_fn(scheduler), z, StepRule(scheduler, steps))
    torch.testing.assert_close(out, data.mean + data.std * u, rtol=0, atol=1e-9)


@every_schedule
@every_prediction
def test_euler_is_ddim_in_other_variables(schedule: Schedule, prediction_type: str) -> None:
    """But for its first level, at which sigma / alpha is limited."""
    data = Gaussian.make(schedule)
    z, limited = noise(data), data.limited
    scheduler = make_scheduler("euler", schedule, prediction_type)
    u = limited.whitened(z, 999)
    for first, second in pairwise(trailing(20)):
        u = u * limited.turn(first, second)
    out = sample_loop(data.x0_fn(scheduler), z, StepRule(scheduler, 20))
    torch.testing.assert_close(out, data.mean + data.std * u, rtol=0, atol=1e-4)


def dpm_solver_2m(data: Gaussian, z: Tensor, steps: int) -> Tensor:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, algorithm 2); the first and the last step are of first order."""
    times = trailing(steps)
    lam = [math.log(a / s) for a, s in (data.levels(t) for t in times[:-1])]
    previous = None
    for i, t in enumerate(times[:-1]):
        (a, s), (b, r) = data.levels(t), data.levels(times[i + 1])
        x0 = data.posterior_mean(z, a, s)
        if times[i + 1] < 0:
            return x0
        h = lam[i + 1] - lam[i]
        mix = x0 if previous is None else x0 + h / (2 * (lam[i] - lam[i - 1])) * (x0 - previous)
        z, previous = r / s * z - b * math.expm1(-h) * mix, x0
    return z


def heun(data: Gaussian, z: Tensor, steps: int) -> Tensor:
    """Heun's method on dx/dsigma = (x - x0) / sigma with x = z / alpha (Karras et al. 2022, algorithm 1)."""
    times = trailing(steps)
    x = z / data.levels(times[0])[0]
    for t, later in pairwise(times):
        (a, s), (b, r) = data.levels(t), data.levels(later)
        slope = (x - data.posterior_mean(x * a, a, s)) / (s / a)
        guess = x + (r / b - s / a) * slope
        if r == 0:
            return guess
        again = (guess - data.posterior_mean(guess * b, b, r)) / (r / b)
        x = x + (r / b - s / a) * (slope + again) / 2
    return x


@every_schedule
@every_prediction
@pytest.mark.parametrize(("kind", "reference"), [("dpm++", dpm_solver_2m), ("heun", heun)])
def test_second_order_samplers_follow_their_formula(
    schedule: Schedule, prediction_type: str, kind: str, reference: Any
) -> None:
    data = Gaussian.make(schedule)
    z = noise(data)
    scheduler = make_scheduler(kind, schedule, prediction_type)
    out = sample_loop(data.x0_fn(scheduler), z, StepRule(scheduler, 20))
    torch.testing.assert_close(out, reference(data.limited, z, 20), rtol=3e-4, atol=2e-4)  # diffusers steps in float32


@every_schedule
@every_prediction
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_ddpm_follows_the_papers_ancestral_step(schedule: Schedule, prediction_type: str, gamma: float) -> None:
    """Appendix A, path by path: the same noise, drawn image by image, added to the paper's mean; none onto x0."""
    data = Gaussian.make(schedule)
    z = start = noise(data)
    scheduler = make_scheduler("ddpm", schedule, prediction_type, gamma=gamma)
    generators = [torch.Generator().manual_seed(i) for i in (3, 4)]
    for t, s in pairwise(trailing(7)):
        (a_t, s_t), (a_s, s_s) = data.levels(t), data.levels(s)
        x0 = data.posterior_mean(z, a_t, s_t)
        if s < 0:
            z = x0
            break
        ratio = (a_t * s_s / (s_t * a_s)) ** 2  # e^(lambda_t - lambda_s)
        mean = ratio * a_s / a_t * z + (1 - ratio) * a_s * x0
        std = ((1 - ratio) * s_s**2) ** ((1 - gamma) / 2) * ((1 - ratio) * s_t**2) ** (gamma / 2)
        drawn = torch.cat([torch.randn((1, *z.shape[1:]), generator=g, dtype=z.dtype) for g in generators])
        z = mean + std * drawn
    again = [torch.Generator().manual_seed(i) for i in (3, 4)]
    out = sample_loop(data.x0_fn(scheduler), start, StepRule(scheduler, 7), again)
    torch.testing.assert_close(out, z, rtol=0, atol=1e-8)


def error(kind: str, prediction_type: str, steps: int) -> float:
    """Distance from the exact ODE's end, but for the jump to x0 from the last level, which every sampler makes."""
    data = Gaussian.make(Straight())
    z = noise(data)
    seen: list[float] = []
    scheduler = make_scheduler("dpm++" if kind == "singlestep" else kind, data.schedule, prediction_type)
    if kind == "singlestep":
        scheduler = DPMSolverSinglestepScheduler.from_config(scheduler.config)
    x0_fn = data.x0_fn(scheduler)

    def watched(z: Tensor, timestep: Tensor) -> Any:
        seen.append(timestep[0].item())
        return x0_fn(z, timestep)

    out = sample_loop(watched, z, StepRule(scheduler, steps))
    assert seen[0] == 999
    return rms(out - (data.mean + data.std * data.whitened(z, 999) * data.turn(seen[-1], -1)))


@every_prediction
@pytest.mark.parametrize(
    ("kind", "order"), [("ddim", 1), ("euler", 1), ("dpm++", 2), ("heun", 2), ("singlestep", 2), ("unipc", 3)]
)
def test_samplers_converge_at_their_order(kind: str, order: int, prediction_type: str) -> None:
    """Halving the step divides the error by 2^order."""
    coarse, fine = error(kind, prediction_type, 50), error(kind, prediction_type, 100)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)
    assert fine < {1: 1e-2, 2: 5e-4, 3: 1e-5}[order]
