"""What differs from diffusers by design (docs/sampling.md): both sides of the table, run."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForText2Image, DDIMScheduler, DiffusionPipeline, IFPipeline

from imagen import ImagenPipeline
from tests.convert.released import stage_1
from tests.factories import sample, seeded, tiny_pipeline

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def ours() -> ImagenPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def theirs() -> IFPipeline:
    pipe = stage_1(text_encoder=copy.deepcopy(stage_1().text_encoder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made(theirs: IFPipeline, prompt: Any = PROMPT, **options: Any) -> Any:
    asked = {"num_inference_steps": 2, "generator": seeded(), "output_type": "pt", **options}
    return theirs(prompt, **asked).images


def test_arguments_that_are_not_taken(ours: ImagenPipeline) -> None:
    taken = inspect.signature(IFPipeline.__call__).parameters.keys()
    own = inspect.signature(ImagenPipeline.__call__).parameters.keys()
    missing = {"timesteps", "eta", "callback", "callback_steps", "clean_caption", "cross_attention_kwargs"}
    assert taken - own == missing
    for name in (*missing, "sigmas", "strength", "noise_level"):
        with pytest.raises(TypeError, match=name):
            ours(PROMPT, **{name: None})
    assert not hasattr(ours, "unet")
    assert not hasattr(ours, "scheduler")


def test_a_picture_in_a_batch(ours: ImagenPipeline, theirs: IFPipeline) -> None:
    alone, together = (sample(ours, prompt, size=16).images[0] for prompt in (PROMPT, [PROMPT, "two"]))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    one, two = (made(theirs, prompt)[0] for prompt in (PROMPT, [PROMPT, "two"]))
    assert (one - two).abs().max() > 0.1


def test_guidance_below_1(ours: ImagenPipeline, theirs: IFPipeline) -> None:
    off, zero = (sample(ours, PROMPT, size=16, guidance_scale=scale).images for scale in (1, 0))
    assert (off - zero).abs().max() > 0.01
    half = sample(ours, PROMPT, size=16, guidance_scale=0.5).images
    assert min((half - other).abs().max() for other in (off, zero)) > 0.001
    assert torch.equal(made(theirs, guidance_scale=1.0), made(theirs, guidance_scale=0.0))


def test_a_negative_prompt_for_several(ours: ImagenPipeline, theirs: IFPipeline) -> None:
    assert sample(ours, [PROMPT, "two"], negative_prompt="a", size=16).images.shape[0] == 2
    for negative, error in (("a", TypeError), (["a"], ValueError)):
        with pytest.raises(error):
            made(theirs, [PROMPT, "two"], negative_prompt=negative)


def test_a_prompt_that_is_too_long(ours: ImagenPipeline, theirs: IFPipeline) -> None:
    with pytest.raises(ValueError, match="nothing is cut silently"):
        ours(PROMPT * 60)
    long = f"{PROMPT} " * 60
    assert torch.equal(made(theirs, long), made(theirs, long + "two"))


def test_what_comes_out(ours: ImagenPipeline, theirs: IFPipeline) -> None:
    pictures = sample(ours, PROMPT).images
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert made(theirs).min() < -0.5
    assert set(ours(PROMPT).keys()) == {"images", "stages"}
    assert theirs(PROMPT, num_inference_steps=2).keys() >= {"images"}
    with pytest.raises(ValueError, match="output_type is 'latent'; expected one of pil, np, pt"):
        ours(PROMPT, output_type="latent")


def test_the_scheduler_stays_as_it_was(ours: ImagenPipeline, theirs: IFPipeline) -> None:
    ours.base_scheduler = DDIMScheduler.from_config(ours.base_scheduler.config)
    before = ours.base_scheduler.timesteps.clone()
    sample(ours, PROMPT, size=16)
    assert torch.equal(ours.base_scheduler.timesteps, before)
    made(theirs)
    assert len(theirs.scheduler.timesteps) == 2


def test_classes_of_diffusers_do_not_know_ours(ours: ImagenPipeline, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path)
    with pytest.raises(AttributeError, match="ImagenPipeline"):
        DiffusionPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ImagenPipeline"):
        AutoPipelineForText2Image.from_pipe(ours)


def test_what_is_cast(theirs: IFPipeline) -> None:
    weight = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    assert tiny_pipeline().to(torch.float16).text_encoder.get_parameter(weight).dtype == torch.float32
    encoder = copy.deepcopy(theirs.text_encoder)
    assert stage_1(text_encoder=encoder).to(torch.float16).text_encoder.get_parameter(weight).dtype == torch.float16


def test_a_network_returns_a_tensor(ours: ImagenPipeline) -> None:
    answers: list[object] = []
    with_hook = ours.base_unet.register_forward_hook(lambda _module, given, answer: answers.append((given, answer)))
    sample(ours, PROMPT, size=16)
    with_hook.remove()
    assert all(isinstance(answer, torch.Tensor) for given, answer in answers if given)  # type: ignore[misc]


def test_components_alone_lose_the_settings(ours: ImagenPipeline) -> None:
    with pytest.warns(UserWarning, match="use ImagenPipeline.from_pipe"):
        assert ImagenPipeline(**ours.components).stage_defaults["base"].size == 64
    assert ImagenPipeline.from_pipe(ours).stage_defaults == ours.stage_defaults
