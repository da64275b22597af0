"""Every sampler and option that is accepted keeps what it promises, also in few steps: near the exact picture, by its
own formula, and with a state at its level.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from imagen.diffusion.denoiser import Denoised
from imagen.diffusion.loop import StepRule, sample_loop
from imagen.diffusion.sampling import MAX_SIGMA, make_scheduler, pressed, sampling_clone
from imagen.diffusion.schedules import CosineSchedule, LinearSchedule, Schedule, level_log_snrs
from tests.diffusion.gaussian import Gaussian, trailing

SCHEDULES = [CosineSchedule(), CosineSchedule(shift=0.5), LinearSchedule()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=["cosine", "noisier", "linear"])


class Sampler(NamedTuple):
    """A class of diffusers, and options of it."""

    cls: Any
    options: dict[str, Any] = {}

    def of(self, schedule: Schedule) -> Any:
        return self.cls.from_config(make_scheduler("ddpm", schedule, "sample").config, **self.options)

    def steps(self, evaluations: int) -> int:
        return (evaluations + 1) // 2 if self.cls is HeunDiscreteScheduler else evaluations


SPACED = ("use_karras_sigmas", "use_exponential_sigmas")
MULTI, SINGLE, UNIPC = DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler
FOR_NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
PRODUCT: dict[str, Sampler] = {"ddim": Sampler(DDIMScheduler)}
for cls, name in ((EulerDiscreteScheduler, "euler"), (HeunDiscreteScheduler, "heun"), (MULTI, "dpm++"),
                  (SINGLE, "singlestep"), (UNIPC, "unipc")):  # fmt: skip
    spaced = (*SPACED, "use_lu_lambdas") if cls in (MULTI, SINGLE) else SPACED
    PRODUCT |= {f"{name} {option}".strip(): Sampler(cls, {option: True} if option else {}) for option in ("", *spaced)}
for cls, name in ((MULTI, "dpm++"), (SINGLE, "singlestep")):
    for more in ({"solver_type": "heun"}, {"solver_order": 1}, {"solver_order": 3}, FOR_NOISE):
        PRODUCT[f"{name} {more}"] = Sampler(cls, more)
for more in ({"solver_order": 1}, {"solver_type": "bh1"}, {"disable_corrector": [0, 1, 2]},
             {"predict_x0": False}, {"lower_order_final": False}):  # fmt: skip
    PRODUCT[f"unipc {more}"] = Sampler(UNIPC, more)
for more in ({"euler_at_final": True}, {"lower_order_final": False}):
    PRODUCT[f"dpm++ {more}"] = Sampler(MULTI, more)
PRODUCT["euler log_linear"] = Sampler(EulerDiscreteScheduler, {"interpolation_type": "log_linear"})
every_sampler = pytest.mark.parametrize("name", PRODUCT)


def noise(data: Gaussian, batch: int = 16) -> Tensor:
    shape = (batch, *data.mean.shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def deviation(sampler: Sampler, schedule: Schedule, evaluations: int) -> float:
    """Root mean square from where the exact ordinary differential equation ends."""
    data = Gaussian.make(schedule, side=8)
    z, scheduler = noise(data), sampler.of(schedule)
    out = sample_loop(data.x0_fn(scheduler), z, StepRule(scheduler, sampler.steps(evaluations)))
    return (out - (data.mean + data.std * data.whitened(z, 999))).square().mean().sqrt().item()


@every_schedule
@pytest.mark.parametrize("evaluations", [12, 20])
@every_sampler
def test_few_evaluations_lie_as_near_the_exact_picture_as_euler_s(
    schedule: Schedule, evaluations: int, name: str
) -> None:
    """At most 0.05 further off, where pictures have a standard deviation of about 0.5."""
    euler = deviation(PRODUCT["euler"], schedule, evaluations)
    assert deviation(PRODUCT[name], schedule, evaluations) < euler + 0.05


@every_schedule
def test_nothing_is_lost_by_the_limit(schedule: Schedule) -> None:
    """Against DDIM, which has none, with as many steps."""
    for steps in (12, 50, 200):
        ddim, euler = (deviation(PRODUCT[name], schedule, steps) for name in ("ddim", "euler"))
        assert euler < ddim + 2e-3


@every_schedule
def test_levels_above_the_limit_are_pressed_together_in_their_order(schedule: Schedule) -> None:
    before = schedule.log_snr((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    after, start, end = pressed(before), -2 * math.log(40), -2 * math.log(50)
    assert torch.equal(after[before >= start], before[before >= start])
    assert (after.diff() < 0).all()
    assert after[before < start].max() < start
    assert after.min() == pytest.approx(end)
    rest = after[before < start]
    torch.testing.assert_close(
        (start - rest) / (start - end), (start - before[before < start]) / (start - before.min())
    )
    for name, sampler in PRODUCT.items():
        clone = sampling_clone(sampler.of(schedule))
        clone.set_timesteps(4) if name != "ddim" else clone.step_list([999, 749, 499, 249])
        if name != "ddim":
            assert clone.sigmas[0] == pytest.approx(MAX_SIGMA, rel=1e-5), name


def test_a_schedule_that_stays_below_the_limit_is_left_alone() -> None:
    for last in (-7, -7.6):  # below 40, and between it and 50
        levels = torch.linspace(8, last, 50, dtype=torch.float64)
        assert torch.equal(pressed(levels), levels)


@pytest.mark.parametrize("cls", [EulerDiscreteScheduler, HeunDiscreteScheduler, MULTI, SINGLE, UNIPC])
def test_beta_sigmas_are_refused_with_what_to_use_instead(cls: Any) -> None:
    scheduler = Sampler(cls, {"use_beta_sigmas": True}).of(CosineSchedule())
    with pytest.raises(ValueError, match=f"{cls.__name__} has use_beta_sigmas, .* use use_exponential_sigmas or"):
        sampling_clone(scheduler)


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_schedulers_that_cannot_take_x0_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot step x0.*DDIMScheduler.*ImagenDDPMScheduler"):
        sampling_clone(getattr(diffusers, name)())


@pytest.mark.parametrize("cls", [MULTI, SINGLE])
def test_forms_for_noise_become_those_for_x0_with_the_noise_they_add(cls: Any) -> None:
    for asked, made in (("dpmsolver", "dpmsolver++"), ("sde-dpmsolver", "sde-dpmsolver++")):
        if asked.startswith("sde") and cls is SINGLE:
            continue  # it has none
        scheduler = Sampler(cls, {**FOR_NOISE, "algorithm_type": asked}).of(CosineSchedule())
        assert sampling_clone(scheduler).config.algorithm_type == made


@pytest.mark.parametrize("options", [{"use_flow_sigmas": True}, {"prediction_type": "flow_prediction"}])
def test_flow_matching_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="UniPCMultistepScheduler is set up for flow matching"):
        sampling_clone(UniPCMultistepScheduler(**options))


@every_schedule
@every_sampler
def test_the_state_keeps_the_level_of_its_timestep(schedule: Schedule, name: str) -> None:
    """Data without any spread: z - alpha x0 is sigma times the noise, whatever the sampler, at every evaluation."""
    scheduler = PRODUCT[name].of(schedule)
    table, worst = level_log_snrs(scheduler), []

    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        low = timestep.double().floor().clamp(max=998).long()
        log_snr = torch.lerp(table[low], table[low + 1], timestep.double() - low)[0]
        eps = (z - torch.sigmoid(log_snr).sqrt() * 0.7) / torch.sigmoid(-log_snr).sqrt()
        worst.append((eps - start).abs().max().item())
        return Denoised(torch.full_like(z, 0.7))

    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in (5, 10, 20):
        sample_loop(x0_fn, start, StepRule(scheduler, steps))
    assert max(worst) < 0.03  # of a standard deviation: at first z lacks its 1 / MAX_SIGMA of x0


def sigmas_of(schedule: Schedule, spacing: str, steps: int, last: float) -> list[float]:
    """sigma / alpha of every step, falling to that of a last timestep, and 0 behind it: as Karras et al. (2022) place
    them (equation 5, rho = 7), or even in its logarithm.
    """
    ends = schedule.log_snr((torch.tensor([999, last], dtype=torch.float64) + 0.5) / 1000).neg().div(2).exp()
    high, low = min(ends[0].item(), MAX_SIGMA), ends[1].item()
    ramp = [i / (steps - 1) for i in range(steps)]
    if spacing == "use_karras_sigmas":
        return [*((high ** (1 / 7) + r * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for r in ramp), 0.0]
    return [*(math.exp(math.log(high) + r * (math.log(low) - math.log(high))) for r in ramp), 0.0]


def mean_at(data: Gaussian, x: Tensor, sigma: float) -> Tensor:
    """The posterior mean of x = x0 + sigma eps."""
    return data.mean + data.std**2 / (data.std**2 + sigma**2) * (x - data.mean)


def euler(data: Gaussian, x: Tensor, sigmas: list[float]) -> Tensor:
    for sigma, later in pairwise(sigmas):
        x = x + (later - sigma) * (x - mean_at(data, x, sigma)) / sigma
    return x


def heun(data: Gaussian, x: Tensor, sigmas: list[float]) -> Tensor:
    """Karras et al. (2022), algorithm 1."""
    for sigma, later in pairwise(sigmas):
        slope = (x - mean_at(data, x, sigma)) / sigma
        guess = x + (later - sigma) * slope
        if later:
            slope = (slope + (guess - mean_at(data, guess, later)) / later) / 2
        x = x + (later - sigma) * slope
    return x


def dpm_solver_2m(data: Gaussian, x: Tensor, sigmas: list[float]) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) for x = z / alpha: the last step, onto x0, is of first order."""
    before: tuple[float, Tensor] | None = None
    for sigma, later in pairwise(sigmas):
        x0 = mean_at(data, x, sigma)
        if not later:
            return x0
        h, mix = math.log(sigma / later), x0
        if before is not None:
            mix = x0 + h / (2 * before[0]) * (x0 - before[1])
        x, before = later / sigma * x - math.expm1(-h) * mix, (h, x0)
    return x


@every_schedule
@pytest.mark.parametrize("spacing", SPACED)
@pytest.mark.parametrize(("cls", "reference"), [
    (EulerDiscreteScheduler, euler), (HeunDiscreteScheduler, heun), (MULTI, dpm_solver_2m),
])  # fmt: skip
def test_each_follows_its_formula_over_levels_spaced_by_theirs(
    schedule: Schedule, spacing: str, cls: Any, reference: Any
) -> None:
    data = Gaussian.make(schedule)
    last = 0 if cls is MULTI else trailing(15)[-2]  # the others replace the levels of their own timesteps
    z, sigmas = noise(data, 2), sigmas_of(schedule, spacing, 15, last)
    scheduler = Sampler(cls, {spacing: True}).of(schedule)
    out = sample_loop(data.x0_fn(scheduler), z, StepRule(scheduler, 15))
    expected = reference(data, z * math.hypot(1, sigmas[0]), sigmas)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=2e-3)  # diffusers steps in float32, between its levels


@every_schedule
@pytest.mark.parametrize("order", [1, 2])
def test_the_stochastic_form_of_dpm_follows_its_formula(schedule: Schedule, order: int) -> None:
    """SDE-DPM-Solver++ of Lu et al. (2022), equation 18 and its second order, path by path, for x = z / alpha."""
    data, steps = Gaussian.make(schedule), 9
    sampler = Sampler(MULTI, {"algorithm_type": "sde-dpmsolver++", "solver_order": order})
    z, scheduler = noise(data, 2), sampler.of(schedule)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    levels = [data.limited.levels(t) for t in trailing(steps)]
    sigmas = [(s / a).item() for a, s in levels]
    x, before = z * math.hypot(1, sigmas[0]), None
    for sigma, later in pairwise(sigmas):
        x0 = mean_at(data, x, sigma)
        drawn = torch.cat([torch.randn((1, *z.shape[1:]), generator=g) for g in generators])
        if not later:
            x = x0
            break
        h, mix = math.log(sigma / later), x0
        if before is not None and order == 2:
            mix = x0 + h / (2 * before[0]) * (x0 - before[1])
        keep = math.exp(-2 * h)
        x = keep * x + (1 - keep) * mix + later * math.sqrt(1 - keep) * drawn
        before = (h, x0)
    again = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    out = sample_loop(data.x0_fn(scheduler), z, StepRule(scheduler, steps), again)
    torch.testing.assert_close(out, x, rtol=1e-3, atol=1e-3)


@every_schedule
@pytest.mark.parametrize("order", [1, 2, 3])
def test_singlestep_and_multistep_of_one_order_meet_where_steps_are_many(schedule: Schedule, order: int) -> None:
    kinds = (MULTI, SINGLE, UNIPC) if order < 3 else (MULTI, SINGLE)
    ends = [deviation(Sampler(cls, {"solver_order": order}), schedule, 120) for cls in kinds]
    assert max(ends) < 0.02


@pytest.mark.parametrize("steps", [4, 5])
@pytest.mark.parametrize("cls", [MULTI, SINGLE, UNIPC])
def test_a_sampler_steps_without_warnings_of_its_library(
    cls: Any, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = cls.from_config(make_scheduler("dpm++", CosineSchedule(), "sample").config)
    logger = diffusers.utils.logging.get_logger(cls.__module__)
    logger.addHandler(caplog.handler)
    StepRule(scheduler, steps)
    logger.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize(
    ("cls", "order", "told"),
    [
        (
            UNIPC,
            3,
            "UniPCMultistepScheduler has solver_order 3, which loses pictures .*; use one of 1, 2$",
        ),
        (UNIPC, 9, "UniPCMultistepScheduler has solver_order 9; use one of 1, 2$"),
        (MULTI, 9, "DPMSolverMultistepScheduler has solver_order 9; use one of 1, 2, 3$"),
    ],
)
def test_an_order_that_is_not_there_or_loses_pictures_is_refused(cls: Any, order: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        sampling_clone(Sampler(cls, {"solver_order": order}).of(CosineSchedule()))
