"""Lists of timesteps, which the loop visits exactly; options of rented schedulers that do not go with the loop."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.pipelines.deepfloyd_if import timesteps as released
from torch import Tensor

from imagen.diffusion.denoiser import Denoised
from imagen.diffusion.loop import StepRule, sample_loop
from imagen.diffusion.sampling import SAMPLERS, make_scheduler, sampling_clone
from imagen.diffusion.schedules import CosineSchedule
from imagen.diffusion.timesteps import RESPACINGS, chosen_timesteps, count_steps, respace

LIST = [999, 700, 420, 77, 3]


@pytest.mark.parametrize("name", RESPACINGS)
def test_the_lists_are_those_released(name: str) -> None:
    assert chosen_timesteps(name) == getattr(released, f"{name}_timesteps")
    assert count_steps(name) == len(chosen_timesteps(name))


def test_one_section_is_evenly_spaced_from_end_to_end() -> None:
    assert respace([4]) == [999, 666, 333, 0]
    assert respace([1, 1]) == [500, 0]
    assert count_steps(7) == chosen_timesteps(7) == 7


@pytest.mark.parametrize("kind", [kind for kind in SAMPLERS if kind != "unipc"])
def test_the_loop_visits_the_list_and_lands_on_x0(kind: str) -> None:
    seen: list[float] = []

    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        seen.append(float(timestep[0]))
        return Denoised(torch.full_like(z, 0.25))

    scheduler = make_scheduler(kind, CosineSchedule(), "epsilon")
    z = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    done = sample_loop(x0_fn, z, StepRule(scheduler, LIST))
    torch.testing.assert_close(done, torch.full_like(done, 0.25), atol=1e-5, rtol=0)
    first = 987 if kind in ("dpm++", "euler", "heun") else LIST[0]  # where sigma is limited
    assert sorted({round(step) for step in seen}, reverse=True) == [first, *LIST[1:]]


def test_lists_that_cannot_be_visited_are_refused() -> None:
    def call(kind: str, steps: list[int]) -> None:
        z = torch.zeros(1, 3, 4, 4)
        sample_loop(lambda z, t: Denoised(z), z, StepRule(make_scheduler(kind, CosineSchedule(), "epsilon"), steps))

    with pytest.raises(ValueError, match="UniPCMultistepScheduler takes no list of timesteps"):
        call("unipc", LIST)
    for wrong in ([3, 77], [1000, 3], [5, 5], [9, 8, 8], [5, -1]):
        with pytest.raises(ValueError, match="must fall within 999"):
            call("ddpm", wrong)
    for fine in ([999, 0], [0], [1, 0]):
        call("ddpm", fine)
    with pytest.raises(ValueError, match="out of range; expected 1 to 1000"):
        call("ddpm", [])


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (DPMSolverMultistepScheduler, {"solver_order": 3, "solver_type": "heun", "lower_order_final": False}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
        (UniPCMultistepScheduler, {"solver_order": 2, "disable_corrector": [0], "timestep_spacing": "leading"}),
        (DDIMScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
        (DDPMScheduler, {"variance_type": "learned"}),
        (DDPMScheduler, {"variance_type": "learned_range"}),
    ],
)
def test_a_scheduler_s_own_options_are_kept(cls: type, options: dict) -> None:
    scheduler = cls(**options)
    config = sampling_clone(scheduler).config
    assert {name: config[name] for name in options} == options
    assert config["prediction_type"] == "sample"
    assert {name: scheduler.config[name] for name in options} == options


def test_the_bounds_are_those_of_the_levels_that_were_trained() -> None:
    """100 here: as many steps at most, and a list within them."""
    scheduler = DDIMScheduler(num_train_timesteps=100, timestep_spacing="trailing")
    assert (StepRule(scheduler, 100).total, StepRule(scheduler, [99, 0]).times) == (100, [99, 0])
    with pytest.raises(ValueError, match="num_inference_steps=101 is out of range; expected 1 to 100"):
        StepRule(scheduler, 101)
    with pytest.raises(ValueError, match=r"timesteps \[100, 0\] must fall within 99 \.\.\. 0"):
        StepRule(scheduler, [100, 0])
    assert respace([2, 3], levels=11) == [10, 8, 6, 5, 0]  # six levels, then five
    assert chosen_timesteps("fast27", 500) == respace(RESPACINGS["fast27"], 500)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (UniPCMultistepScheduler, {"solver_type": "bh1"}),
        (UniPCMultistepScheduler, {"predict_x0": False}),
        (UniPCMultistepScheduler, {"lower_order_final": False}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ],
)
def test_options_that_do_not_go_with_x0_and_a_clean_end_are_put_right(cls: type, options: dict) -> None:
    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        return Denoised(0.3 * z)

    plain = make_scheduler("unipc" if cls is UniPCMultistepScheduler else "dpm++", CosineSchedule(), "epsilon")
    other = cls.from_config(plain.config, **options)  # type: ignore[attr-defined]
    z = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for steps in (1, 2, 7):
        ours, theirs = (sample_loop(x0_fn, z, StepRule(scheduler, steps)) for scheduler in (plain, other))
        assert torch.equal(ours, theirs)
        assert ours.isfinite().all()
