"""Start noise that a call is given: the drawn one in its place gives the drawn picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imagen import ImagenPipeline
from imagen.cascade.seeds import picture_seeds, stage_generator
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from tests.factories import Calls, sample, seeded, tiny_pipeline

PROMPTS = ["a red circle", "two blue star"]
SIDES = {"base": 16, "sr256": 32, "sr1024": 64}


@pytest.fixture(scope="module")
def pipe() -> ImagenPipeline:
    return tiny_pipeline()


def drawn(slot: str, count: int = 2, shape: tuple[int, int] | None = None, seed: int = 0) -> Tensor:
    """The start noise of the pictures of a call with this seed."""
    sides = shape or (SIDES[slot],) * 2
    generators = [stage_generator(each, slot) for each in picture_seeds(seeded(seed), count)]
    return torch.stack([torch.randn(3, *sides, generator=generator) for generator in generators])


def same(a: Any, b: Any) -> bool:
    return list(a.stages) == list(b.stages) and all(torch.equal(a.stages[size], b.stages[size]) for size in a.stages)


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "euler"])
def test_the_noise_that_would_be_drawn_gives_the_same_pictures(kind: Any) -> None:
    """Bit for bit, with samplers that draw at every step too, and whatever scale a sampler's state has."""
    rule = make_scheduler(kind, CosineSchedule(), "v_prediction")
    pipe = tiny_pipeline(base_scheduler=rule)
    plain = sample(pipe, PROMPTS)
    noise = {slot: drawn(slot) for slot in SIDES}
    before = {slot: value.clone() for slot, value in noise.items()}
    assert same(sample(pipe, PROMPTS, latents=noise["base"]), plain)
    assert same(sample(pipe, PROMPTS, latents=noise), plain)
    assert same(sample(pipe, PROMPTS, latents={SIDES[slot]: value for slot, value in noise.items()}), plain)
    assert same(sample(pipe, PROMPTS, latents=list(noise.values())), plain)
    assert same(sample(pipe, PROMPTS, latents=[None, noise["sr256"], None]), plain)
    assert all(torch.equal(noise[slot], before[slot]) for slot in noise)
    other = sample(pipe, PROMPTS, latents=drawn("base", seed=7))
    assert (other.stages[16] - plain.stages[16]).abs().max() > 0.01
    assert not same(sample(pipe, PROMPTS, latents={"sr1024": drawn("sr1024", seed=7)}), plain)


def test_only_the_start_noise_is_replaced(pipe: ImagenPipeline) -> None:
    """Noise of seed 7 with the generator of seed 0: what steps draw, and the low-res picture is given, is 0's."""
    asked = {"size": 32, "num_inference_steps": 1}
    with Calls(pipe.sr256_unet) as plain:
        sample(pipe, PROMPTS, **asked)
    with Calls(pipe.sr256_unet) as given:
        sample(pipe, PROMPTS, latents={32: drawn("sr256", seed=7)}, **asked)
    assert torch.equal(given.samples[0]["lowres"], plain.samples[0]["lowres"])
    assert torch.equal(given.samples[0]["z"][:2], drawn("sr256", seed=7))
    steps: dict[int, list[Tensor]] = {0: [], 7: []}
    for seed, seen in steps.items():
        # a state set to zero after each step: the next one is the estimate from it and what the step draws
        def note(p: Any, step: int, t: float, tensors: dict[str, Tensor], seen: list[Tensor] = seen) -> Any:
            seen.append(tensors["z"])
            return {"z": torch.zeros_like(tensors["z"])}

        noise = drawn("base", seed=seed)
        sample(pipe, PROMPTS, size=16, num_inference_steps=4, latents=noise, callback_on_step_end=note)
    assert not torch.equal(steps[0][0], steps[7][0])
    assert all(torch.equal(a, b) for a, b in zip(steps[0][1:], steps[7][1:], strict=True))


def test_the_generator_moves_on_as_without(pipe: ImagenPipeline) -> None:
    left, right = seeded(3), seeded(3)
    sample(pipe, PROMPTS, size=16, generator=left)
    sample(pipe, PROMPTS, size=16, generator=right, latents=drawn("base"))
    assert torch.equal(left.get_state(), right.get_state())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_noise_of_any_float_is_taken_as_it_is(pipe: ImagenPipeline, dtype: torch.dtype) -> None:
    noise = drawn("base").to(dtype)
    with Calls(pipe.base_unet) as calls:
        sample(pipe, PROMPTS, size=16, latents=noise)
    assert torch.equal(calls.samples[0]["z"][:2], noise.float())


def test_noise_for_pictures_that_are_wide_and_many(pipe: ImagenPipeline) -> None:
    asked = {"num_images_per_prompt": 2, "height": 32, "width": 64}
    plain = sample(pipe, PROMPTS, size=32, **asked)
    noise = {"base": drawn("base", 4, (16, 32)), 32: drawn("sr256", 4, (32, 64))}
    assert same(sample(pipe, PROMPTS, size=32, latents=noise, **asked), plain)
    assert same(sample(pipe, PROMPTS, size=32, latents=list(noise.values()), **asked), plain)


def test_one_tensor_is_for_the_first_stage_that_runs(pipe: ImagenPipeline) -> None:
    start = torch.rand(2, 3, 32, 32, generator=seeded())
    plain = sample(pipe, PROMPTS, image=start)
    assert list(plain.stages) == [64]
    assert same(sample(pipe, PROMPTS, image=start, latents=drawn("sr1024")), plain)
    assert same(sample(pipe, PROMPTS, image=start, latents=[None, None, drawn("sr1024")]), plain)


Z = torch.zeros(1, 3, 16, 16)
WRONG = [
    (torch.zeros(2, 3, 16, 16), r"stage base: torch.float32 \(2, 3, 16, 16\); expected a tensor of floats \(1, 3, 16"),
    (torch.zeros(1, 3, 32, 32), r"latents of stage base: torch.float32 \(1, 3, 32, 32\); expected"),
    (Z.long(), "latents of stage base: torch.int64"),
    (Z.cfloat(), "latents of stage base: torch.complex64"),
    (np.zeros((1, 3, 16, 16)), "latents of stage base: ndarray; expected a tensor of floats"),
    ("noise", "latents of stage base: str; expected a tensor of floats"),
    (Z + torch.inf, "latents of stage base holds numbers that are not finite"),
    (Z.double() + 1e300, "latents of stage base holds numbers that are not finite"),
    ({"sr256": Z}, r"latents of stage sr256: .*expected a tensor of floats \(1, 3, 32, 32\)"),
    ({"sr1024": torch.zeros(1, 3, 64, 64)}, "latents has noise for stage sr1024, which does not run; here base, sr256"),
    ([Z, None, torch.zeros(1, 3, 64, 64)], "latents has noise for stage sr1024, which does not run"),
    ({8: Z}, "latents names stage 8; this model has 16, 32, 64"),
    ({"base": Z, 16: Z}, "latents names stage base twice"),
    ([Z], "latents has 1 values; expected one, or 2"),
]


@pytest.mark.parametrize(("latents", "message"), WRONG)
def test_noise_that_fits_no_stage_is_told_before_anything_runs(
    pipe: ImagenPipeline, latents: Any, message: str
) -> None:
    generator = seeded(3)
    with Calls(pipe.base_unet) as calls, pytest.raises(ValueError, match=message):
        sample(pipe, PROMPTS[0], size=32, latents=latents, generator=generator)
    assert not calls.samples
    assert torch.equal(generator.get_state(), seeded(3).get_state())
