"""What a run makes before it is needed: the levels of all its steps, and noise while a network is at work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler
from torch import Tensor

from imagen.diffusion import noise
from imagen.diffusion.denoiser import Denoised, Step, make_x0_fn
from imagen.diffusion.guidance import CFG, Guide
from imagen.diffusion.loop import StepRule, sample_loop
from imagen.diffusion.sampling import SAMPLERS, ImagenDDPMScheduler, make_scheduler, model_output
from imagen.diffusion.schedules import CosineSchedule, level_log_snrs, log_snr_at

STOCK: dict[str, Any] = {kind: make_scheduler(kind, CosineSchedule(), "epsilon") for kind in SAMPLERS}


def start(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def generators(batch: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(batch)]


def curved(z: Tensor, timestep: Tensor) -> Denoised:
    x0 = torch.tanh(2 * z) * (1.5 - timestep / 1000)[:, None, None, None]
    return Denoised(x0, torch.sin(5 * z))


class Noting(CFG):
    """Classifier-free guidance that keeps what it sees of the level."""

    seen: list[tuple[Tensor, Tensor, tuple[float, ...]]] = []

    def start(self) -> Guide:
        inner = super().start()

        def noting(step: Step) -> Tensor:
            self.seen.append((step.timestep, step.log_snr, step.log_snrs))
            return inner(step)

        return noting


@pytest.mark.parametrize("kind", SAMPLERS)
def test_levels_made_together_are_those_made_one_by_one(kind: str) -> None:
    scheduler = STOCK[kind]
    table = level_log_snrs(scheduler)
    x0_fn = make_x0_fn(
        lambda z, t, branches: [z * (0.1 + i) for i, _ in enumerate(branches)],
        prediction_type="epsilon",
        log_snrs=table,
        guidance=Noting(),
        guidance_scale=3.0,
    )
    Noting.seen.clear()
    rule = StepRule(scheduler, 7)
    together = sample_loop(x0_fn, start(), rule, generators())
    first, second = Noting.seen[: len(rule.times)], Noting.seen
    apart = sample_loop(lambda z, t: x0_fn(z, t), start(), rule, generators())
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)
    assert len(second) == 2 * len(first) == 2 * len(rule.times)
    for time, made, single in zip(rule.times, first, second[len(first) :], strict=True):
        assert torch.equal(made[0], torch.full((3,), time))
        torch.testing.assert_close(made[1], log_snr_at(made[0], table), rtol=1e-14, atol=0)
        assert list(made[2]) == made[1].tolist()
        assert torch.equal(single[0], made[0])
        torch.testing.assert_close(single[1], made[1], rtol=1e-14, atol=0)
        assert list(single[2]) == single[1].tolist()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_row_of_noise_is_what_torch_draws_from_its_generator(batch: int) -> None:
    for shape in ((1, 1, 1), (3, 5, 7), (3, 64, 64)):
        for dtype in (torch.float32, torch.float64):
            drawn = noise.draw(generators(batch), (batch, *shape), torch.device("cpu"), dtype)
            alone = [torch.randn(shape, generator=one, dtype=dtype) for one in generators(batch)]
            assert torch.equal(drawn, torch.stack(alone))


def test_noise_for_a_gpu_is_drawn_where_it_copies_from_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def empty(*shape: Any, **how: Any) -> Tensor:
        raise Asked(how["pin_memory"], how["device"].type)

    monkeypatch.setattr(torch, "empty", empty)
    for device, pinned in (("cuda", True), ("cpu", False), ("mps", False)):
        with pytest.raises(Asked) as asked:
            noise.draw(generators(1), (1, 4), torch.device(device), torch.float32)
        assert asked.value.args == (pinned, "cpu")


def test_the_noise_of_a_step_is_drawn_behind_its_evaluation_and_none_behind_the_last() -> None:
    """The network of a step has been asked by then, so that a GPU has work meanwhile."""
    own = torch.Generator().manual_seed(5)
    states: list[Tensor] = []

    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        states.append(own.get_state())
        return Denoised(z / 2)

    stochastic = type(STOCK["dpm++"]).from_config(STOCK["dpm++"].config, algorithm_type="sde-dpmsolver++")
    wide, narrow = torch.float64, torch.float32  # of ddpm's noise and of dpm++'s, of states in float64
    for scheduler, dtype in (
        (STOCK["ddpm"], wide),
        (stochastic, narrow),
        (STOCK["dpm++"], None),
        (STOCK["ddim"], None),
    ):
        own.manual_seed(5)
        states.clear()
        sample_loop(x0_fn, start(1).double(), StepRule(scheduler, 4), [own])
        other = torch.Generator().manual_seed(5)
        for state in states:
            assert torch.equal(state, other.get_state())
            if dtype is not None:
                torch.randn(3, 4, 4, generator=other, dtype=dtype)
        assert torch.equal(own.get_state(), states[-1])


@pytest.mark.parametrize("spacing", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "linspace"}], ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_unipc_is_diffusers_to_the_bit(order: int, spacing: dict[str, Any]) -> None:
    scheduler = UniPCMultistepScheduler.from_config(STOCK["unipc"].config, solver_order=order, **spacing)
    for steps in (1, 2, 3, 12):
        for dtype in (torch.float32, torch.float64):
            rule = StepRule(scheduler, steps)
            rented = UniPCMultistepScheduler(**{k: v for k, v in rule.clone.config.items() if not k.startswith("_")})
            rented.alphas_cumprod = rule.clone.alphas_cumprod
            rented.set_timesteps(steps)
            state = start().to(dtype)
            for i, timestep in enumerate(rented.timesteps):
                x0 = curved(state, torch.full((3,), rule.times[i], dtype=dtype)).x0
                state = rented.step(x0, timestep, state, return_dict=False)[0]
            assert torch.equal(sample_loop(curved, start().to(dtype), rule), state)


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range", "gamma"])
def test_ddpm_with_noise_made_ahead_is_diffusers_to_the_bit(variance: str) -> None:
    kind = {"gamma": 0.3} if variance == "gamma" else {"variance_type": variance}
    scheduler = ImagenDDPMScheduler.from_config(STOCK["ddpm"].config, **kind)
    for batch, dtype in ((1, torch.float32), (3, torch.float64)):
        rule = StepRule(scheduler, 6)
        rented = ImagenDDPMScheduler(**{k: v for k, v in rule.clone.config.items() if not k.startswith("_")})
        rented.alphas_cumprod = rule.clone.alphas_cumprod
        rented.set_timesteps(6)
        state, own = start(batch).to(dtype), generators(batch)
        for timestep in rented.timesteps:
            denoised = curved(state, torch.full((batch,), float(timestep), dtype=dtype))
            state = rented.step(model_output(rented, denoised), timestep, state, own, return_dict=False)[0]
        out = sample_loop(curved, start(batch).to(dtype), rule, generators(batch))
        torch.testing.assert_close(out, state, rtol=0, atol=0)


def test_whoever_draws_it_the_noise_of_a_picture_is_its_generator_s() -> None:
    """diffusers' singlestep solver draws its own, and so may a scheduler that inherits from one of diffusers'."""

    class Own(DDPMScheduler):
        pass

    single = DPMSolverSinglestepScheduler.from_config(STOCK["dpm++"].config, algorithm_type="sde-dpmsolver++")
    for scheduler in (single, Own.from_config(STOCK["ddpm"].config), STOCK["ddpm"]):
        together = sample_loop(curved, start(), StepRule(scheduler, 6), generators())
        alone = sample_loop(curved, start()[2:], StepRule(scheduler, 6), generators()[2:])
        torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-6)
