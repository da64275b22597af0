"""A step rule is made once and used again: each loop begins anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagen.diffusion.denoiser import Denoised
from imagen.diffusion.loop import LoopState, StepRule, sample_loop
from imagen.diffusion.sampling import SAMPLERS, make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.diffusion.timesteps import RESPACINGS, respace


def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
    """An estimate that moves with z and time, so that what multistep rules keep of earlier steps matters."""
    return Denoised(torch.tanh(2 * z) * (1.5 - timestep[0].item() / 1000))


def noise(seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop(rule: StepRule, seed: int, batch: int = 2, **more: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(10 * seed + i) for i in range(batch)]
    return sample_loop(x0_fn, noise(seed, batch), rule, generators, **more)


def rule(kind: str, steps: int | list[int] = 5) -> StepRule:
    return StepRule(make_scheduler(kind, CosineSchedule(), "epsilon"), steps)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_rule_that_was_used_is_as_a_new_one(kind: str) -> None:
    """Of other noise and of another number of pictures, too: multistep rules keep states of the loop before."""
    used = rule(kind)
    for seed, batch in ((1, 2), (2, 2), (1, 2), (3, 1)):
        assert torch.equal(loop(used, seed, batch), loop(rule(kind), seed, batch))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_rule_whose_loop_was_stopped_is_as_a_new_one(kind: str) -> None:
    def stop(state: LoopState) -> None:
        state.stop = state.step == 1

    used = rule(kind)
    loop(used, 1, callback=stop)
    assert torch.equal(loop(used, 2), loop(rule(kind), 2))


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "dpm++"])
def test_a_rule_with_a_list_of_timesteps_begins_anew_with_the_list(kind: str) -> None:
    listed = respace(RESPACINGS["fast27"])
    used = rule(kind, listed)
    assert used.total == 27
    assert used.times[1:] == listed[1:]
    assert used.times[0] == (listed[0] if kind != "dpm++" else pytest.approx(986.66, abs=0.01))  # sigma is limited
    assert torch.equal(loop(used, 1), loop(used, 1))
    assert torch.equal(loop(used, 2), loop(rule(kind, listed), 2))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_callback_hears_of_every_step_once_and_changes_nothing(kind: str) -> None:
    seen: list[tuple[int, int, float]] = []
    used = rule(kind, 4)
    made = loop(used, 1, callback=lambda state: seen.append((state.step, state.total, state.timestep)))
    assert torch.equal(made, loop(used, 1))
    assert [one[:2] for one in seen] == [(step, 4) for step in range(4)]
    times = [time for *_, time in seen]
    assert sorted(times, reverse=True) == times
    assert {*times} <= {*used.times}
    assert len(used.times) == (7 if kind == "heun" else 4)


@pytest.mark.parametrize("kind", ["dpm++", "unipc"])
def test_a_loop_begins_at_the_first_of_timesteps_that_are_alike(kind: str) -> None:
    """Karras' sigmas of 300 steps are so close at the noisy end that a scheduler rounds several to one timestep."""
    scheduler = make_scheduler(kind, CosineSchedule(), "epsilon")
    own = StepRule(type(scheduler).from_config(scheduler.config, use_karras_sigmas=True), 300)
    assert len(set(own.clone.timesteps.tolist())) < 300
    seen: list[Tensor] = []

    def grey(z: Tensor, timestep: Tensor) -> Denoised:
        seen.append(z)
        return Denoised(torch.full_like(z, 0.3))

    sample_loop(grey, noise(1), own)
    ratios = own.clone.sigmas.double().tolist()[:300]
    for z, ratio in zip(seen, ratios, strict=True):  # z is the picture and the noise, as 1 to sigma
        expected = (0.3 + ratio * noise(1)) / (1 + ratio**2) ** 0.5
        torch.testing.assert_close(z, expected, rtol=0, atol=8e-3)  # the start is noise alone, without 0.3 / 50


@pytest.mark.parametrize(
    ("kind", "karras"),
    [*((kind, False) for kind in SAMPLERS), *((kind, True) for kind in ("dpm++", "unipc", "euler", "heun"))],
)
def test_a_callback_is_told_the_timestep_that_the_estimate_is_of(kind: str, karras: bool) -> None:
    """The one where x0_fn was evaluated last, which with Karras' sigmas a scheduler's own list rounds."""
    scheduler = make_scheduler(kind, CosineSchedule(), "epsilon")
    own = StepRule(type(scheduler).from_config(scheduler.config, use_karras_sigmas=karras), 7)
    asked: list[float] = []

    def watched(z: Tensor, timestep: Tensor) -> Denoised:
        asked.append(timestep[0].item())
        return x0_fn(z, timestep)

    told: list[tuple[float, float]] = []
    sample_loop(watched, noise(1), own, None, lambda state: told.append((state.timestep, asked[-1])))
    assert len(told) == 7
    assert all(heard == evaluated for heard, evaluated in told)
    listed = own.clone.timesteps.double().tolist()
    rounded = karras and kind in ("dpm++", "unipc")
    assert (own.times[1:] != listed[1:]) == rounded  # at the first one sigma is limited
