"""Pipeline against pipeline: every step of ours is that of diffusers' IFPipeline and IFSuperResolutionPipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, IFPipeline, IFSuperResolutionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from imagen import ImagenPipeline
from imagen.cascade.adapter_files import save_adapter
from imagen.cascade.adapters import attach
from imagen.cascade.seeds import picture_seeds, stage_generator
from imagen.cascade.training.config.sections import ATTENTION
from imagen.stages.folder import ADAPTER as WEIGHTS
from tests.factories import seeded
from unets import BaseUNet

PROMPT, NEGATIVE = "  A Red CIRCLE ", "two blue star"
STEPS = 20


def float32_draws(shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, **_: Any) -> Tensor:
    """The same noise for both: our cascade draws a stage's first noise in float32, whatever its networks compute in."""
    return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)


@pytest.fixture
def same_noise() -> Iterator[None]:
    place = "diffusers.pipelines.deepfloyd_if"
    with (
        mock.patch(f"{place}.pipeline_if.randn_tensor", float32_draws),
        mock.patch(f"{place}.pipeline_if_superresolution.randn_tensor", float32_draws),
    ):
        yield


def in_float64(scheduler: Any) -> Any:
    """A scheduler's tables from the same betas without float32's rounding of their products."""
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = scheduler.one.double()
    return scheduler


def theirs(folder: Path, exact_tables: bool = True) -> tuple[IFPipeline, IFSuperResolutionPipeline]:
    """diffusers' pipelines in float64."""
    options = {"torch_dtype": torch.float64, "safety_checker": None, "watermarker": None}
    first = IFPipeline.from_pretrained(folder / "I", **options, requires_safety_checker=False)
    second = IFSuperResolutionPipeline.from_pretrained(folder / "II", **options, requires_safety_checker=False)
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    if exact_tables:
        in_float64(first.scheduler)
        in_float64(second.scheduler)
        in_float64(second.image_noising_scheduler)
    return first, second


def ours(folder: Path) -> ImagenPipeline:
    """Ours in float64."""
    pipe = ImagenPipeline.from_pretrained(folder, dtype=torch.float64, safety_checker=None, watermarker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def our_steps(pipe: ImagenPipeline, **given: Any) -> dict[str, list[Tensor]]:
    """z after every step of every stage."""
    seen: dict[str, list[Tensor]] = {}

    def note(p: ImagenPipeline, step: int, timestep: float, tensors: dict[str, Tensor]) -> None:
        seen.setdefault(str(p.stage), []).append(tensors["z"])

    pipe(generator=seeded(5), output_type="pt", callback_on_step_end=note, num_inference_steps=STEPS, **given)
    return seen


def generator_of(slot: str) -> torch.Generator:
    """The generator into which ours expands ``seeded(5)`` for the one picture in this stage."""
    return stage_generator(picture_seeds(seeded(5), 1)[0], slot)


def their_steps(
    pipes: tuple[IFPipeline, IFSuperResolutionPipeline], shape: tuple[int, int], negative: str | None
) -> dict[str, list[Tensor]]:
    first, second = pipes
    seen: dict[str, list[Tensor]] = {"base": [], "sr256": []}
    prompts = {"prompt": PROMPT, "negative_prompt": negative, "clean_caption": False, "output_type": "pt"}
    steps = {"num_inference_steps": STEPS}
    small = first(
        **prompts,
        **steps,
        height=shape[0] // 2,
        width=shape[1] // 2,
        generator=generator_of("base"),
        callback=lambda i, t, z: seen["base"].append(z),
    ).images
    second(
        **prompts,
        **steps,
        image=small,
        height=shape[0],
        width=shape[1],
        generator=generator_of("sr256"),
        callback=lambda i, t, z: seen["sr256"].append(z),
    )
    return seen


def distance(a: dict[str, list[Tensor]], b: dict[str, list[Tensor]]) -> dict[str, float]:
    assert all(len(a[slot]) == len(b[slot]) == STEPS for slot in ("base", "sr256"))
    pairs = {slot: zip(a[slot], b[slot], strict=True) for slot in ("base", "sr256")}
    return {slot: max(float((x - y).abs().max()) for x, y in of) for slot, of in pairs.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize(
    ("shape", "negative"), [((32, 32), None), ((32, 48), NEGATIVE)], ids=["square", "wide, negative prompt"]
)
def test_every_step_is_theirs(checkpoint: Path, converted: Path, shape: tuple[int, int], negative: str | None) -> None:
    """Guidance 7 and 4, dynamic thresholding with caps 1.5 and 1, learned variance, noise level 250: the defaults."""
    mine = our_steps(ours(converted), prompt=PROMPT, negative_prompt=negative, height=shape[0], width=shape[1])
    reference = their_steps(theirs(checkpoint), shape, negative)
    assert mine["sr256"][-1].shape == (1, 3, *shape)
    assert mine["base"][0].dtype == torch.float64
    assert reference["base"][-1].std() > 0.1
    for slot, far in distance(mine, reference).items():
        print(f"{slot}: {far:.2e}")
        assert far <= 1e-6, slot


@pytest.mark.slow
@pytest.mark.usefixtures("same_noise")
def test_the_float32_tables_that_diffusers_steps_by_are_near(checkpoint: Path, converted: Path) -> None:
    """What is left against the pipelines exactly as they come is the rounding of their own alphas_cumprod."""
    mine = our_steps(ours(converted), prompt=PROMPT)
    far = distance(mine, their_steps(theirs(checkpoint, exact_tables=False), (32, 32), None))
    print(far)
    assert max(far.values()) <= 1e-3


@torch.no_grad()
def test_a_picture_of_theirs_is_made_again_from_its_start_noise(checkpoint: Path, converted: Path) -> None:
    """With a sampler that draws nothing; theirs as it comes, its start noise drawn by itself."""
    pipe, (first, _) = ours(converted), theirs(checkpoint)
    first.scheduler = DPMSolverMultistepScheduler.from_config(first.scheduler.config)
    first.scheduler.register_to_config(variance_type="fixed_small")  # by this word theirs drops the learned one
    pipe.base_scheduler = DPMSolverMultistepScheduler.from_config(pipe.base_scheduler.config)
    text, null = first.encode_prompt(PROMPT, clean_caption=False)
    embeds = {
        "prompt_embeds": text,
        "negative_prompt_embeds": null,
        "guidance_scale": 7.0,
        "num_inference_steps": STEPS,
    }
    made = first(generator=seeded(5), output_type="pt", **embeds).images
    noise = torch.randn(1, 3, *made.shape[2:], generator=seeded(5), dtype=torch.float64)
    again = pipe(latents=noise, size=made.shape[2], output_type="pt", **embeds).images
    torch.testing.assert_close(again, (made / 2 + 0.5).float(), atol=1e-5, rtol=0)
    other = pipe(latents=-noise, size=made.shape[2], output_type="pt", **embeds).images
    assert (other - again).abs().max() > 0.1


@pytest.fixture
def adapter(converted: Path, tmp_path: Path) -> Path:
    """The folder of a random adapter of the base stage."""
    unet = BaseUNet.from_pretrained(converted / "base_unet")
    attach(unet, 2, 3.0, ATTENTION)
    generator = seeded(3)
    drawn = {
        name: 0.3 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in unet.named_parameters()
        if parameter.requires_grad
    }
    save_adapter(tmp_path / WEIGHTS, drawn, 2, 3.0, ATTENTION)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("same_noise")
def test_every_step_with_an_adapter_is_theirs(checkpoint: Path, converted: Path, adapter: Path) -> None:
    """The same file in both; what is left is the float32 of peft's matrices."""
    pipe, pipes = ours(converted), theirs(checkpoint)
    plain = our_steps(pipe, prompt=PROMPT)
    pipe.load_lora_weights(adapter)
    pipes[0].load_lora_weights(adapter)
    mine = our_steps(pipe, prompt=PROMPT)
    far = distance(mine, their_steps(pipes, (32, 32), None))
    print(far, distance(mine, plain))
    assert max(far.values()) <= 1e-4
    assert distance(mine, plain)["base"] > 0.1


@torch.no_grad()
def test_text_is_encoded_as_theirs(checkpoint: Path, converted: Path) -> None:
    pipe, (first, _) = ours(converted), theirs(checkpoint)
    prompt, negative = first.encode_prompt(PROMPT, clean_caption=False)
    text, mask = pipe.reader.encode([PROMPT])
    null, null_mask = pipe.reader.null(text.shape[-1])
    assert text.shape[1] == null.shape[1] == 77
    assert mask.all()
    assert null_mask.all()
    torch.testing.assert_close(text, prompt, atol=1e-12, rtol=0)
    torch.testing.assert_close(null, negative, atol=1e-12, rtol=0)
    assert (text[0, 0] - text[0, -1]).abs().max() > 1e-3  # padding is no zero: the networks read it
