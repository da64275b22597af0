"""What a call returns, which components may be left out, and how bad input is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PNDMScheduler
from PIL import Image

from imagen import ImagenPipeline
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from tests.factories import (
    WIDTH,
    Calls,
    sample,
    seeded,
    tiny_base,
    tiny_pipeline,
    tiny_sr,
    tiny_stages,
    tiny_text_encoder,
    tiny_tokenizer,
)

PROMPTS = ["a red circle", "two blue star", "a small green circle"]


@pytest.fixture(scope="module")
def pipe() -> ImagenPipeline:
    return tiny_pipeline()


def test_output_types_are_the_same_picture(pipe):
    tensor = sample(pipe, PROMPTS).images
    assert tensor.shape == (3, 3, 64, 64)
    assert tensor.dtype == torch.float32
    assert 0 <= tensor.min() < tensor.max() <= 1
    array = sample(pipe, PROMPTS, output_type="np").images
    np.testing.assert_allclose(array, tensor.permute(0, 2, 3, 1).numpy())
    pil = sample(pipe, PROMPTS, output_type="pil")
    assert all(isinstance(image, Image.Image) and image.size == (64, 64) for image in pil.images)
    np.testing.assert_array_equal(np.asarray(pil.images[1]), np.round(array[1] * 255).astype(np.uint8))
    images, stages = sample(pipe, PROMPTS, return_dict=False)
    assert torch.equal(images, tensor)
    assert list(stages) == [16, 32, 64]


def test_later_stages_may_be_absent():
    pipe = tiny_pipeline(sr1024_unet=None, sr1024_scheduler=None)
    assert list(sample(pipe, PROMPTS[0]).stages) == [16, 32]
    with pytest.raises(ValueError, match=r"size=64: this model makes 16, 32 px"):
        pipe(PROMPTS[0], size=64)
    gap = tiny_pipeline(sr256_unet=None)
    assert list(sample(gap, PROMPTS[0]).stages) == [16]
    with pytest.raises(ValueError, match=r"stage sr1024 starts from 32 px and no stage here makes those"):
        gap(PROMPTS[0], size=64)


def test_super_resolution_alone_starts_from_a_picture():
    pipe = tiny_pipeline(base_unet=None, base_scheduler=None)
    with pytest.raises(ValueError, match="no base stage"):
        pipe(PROMPTS[0])
    picture = Image.new("RGB", (16, 16), (200, 30, 30))
    out = sample(pipe, PROMPTS[0], image=picture)
    assert list(out.stages) == [32, 64]
    both = sample(pipe, PROMPTS[0], image=[picture, picture.resize((100, 20))], num_images_per_prompt=2)
    assert both.images.shape[0] == 4
    torch.testing.assert_close(both.images[0], out.images[0], atol=1e-4, rtol=0)


def test_without_text_anywhere():
    unet, sr = tiny_base(text_dim=None), tiny_sr(text_dim=None)
    pipe = tiny_pipeline(
        tokenizer=None, text_encoder=None, base_unet=unet, sr256_unet=sr, sr1024_unet=None, sr1024_scheduler=None
    )
    out = sample(pipe, num_images_per_prompt=3)
    assert out.images.shape == (3, 3, 32, 32)
    assert sample(pipe, image=out.stages[16]).images.shape == (3, 3, 32, 32)
    with pytest.raises(ValueError, match="no stage that runs reads text"):
        pipe(prompt_embeds=torch.zeros(1, 1, WIDTH))


def test_other_channels_come_as_arrays():
    options = {"tokenizer": None, "text_encoder": None, "sr256_unet": None, "sr1024_unet": None}
    pipe = tiny_pipeline(base_unet=tiny_base(text_dim=None, in_channels=5, out_channels=5), **options)
    assert sample(pipe, output_type="np").images.shape == (1, 16, 16, 5)
    with pytest.raises(ValueError, match="output_type='pil' cannot hold 5 channels"):
        pipe()
    gray = tiny_pipeline(base_unet=tiny_base(text_dim=None, in_channels=1, out_channels=1), **options)
    assert gray().images[0].mode == "L"


@pytest.mark.parametrize(("first", "second"), [(3, 5), (5, 3)])
def test_an_output_must_hold_the_channels_of_every_stage_that_runs(first, second):
    """For the pictures of all of them come out."""
    bare = dict.fromkeys(("tokenizer", "text_encoder", "sr1024_unet", "sr1024_scheduler"))
    base = tiny_base(text_dim=None, in_channels=first, out_channels=first)
    sr = tiny_sr(text_dim=None, in_channels=second, out_channels=second, lowres_channels=first)
    pipe = tiny_pipeline(base_unet=base, sr256_unet=sr, **bare)
    shapes = [tuple(stage.shape) for stage in sample(pipe, output_type="pt", num_inference_steps=1).stages.values()]
    assert shapes == [(1, first, 16, 16), (1, second, 32, 32)]
    with Calls(pipe.base_unet) as calls, pytest.raises(ValueError, match="output_type='pil' cannot hold 5 channels"):
        pipe()
    assert not calls.samples


NAN = float("nan")
EMBEDS = {"prompt": None, "prompt_embeds": torch.zeros(2, 2, WIDTH)}
BAD_CALLS = [
    ({"prompt": None}, "no prompt: stage base reads text"),
    ({"prompt": []}, "non-empty list of strings"),
    ({"prompt": 3}, "prompt is 3"),
    ({"guidance_scale": NAN}, "guidance_scale is nan"),
    ({"guidance_scale": {32: NAN}}, "guidance_scale is nan"),
    ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
    ({"guidance_scale": {128: 2.0}}, "names stage 128; this model has 16, 32, 64"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0"),
    ({"num_inference_steps": 1001}, "num_inference_steps is 1001; expected an integer from 1 to 1000"),
    ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
    ({"num_inference_steps": [2, 2]}, "has 2 values; expected one, or 3"),
    ({"aug_level": 1.5}, "aug_level is 1.5"),
    ({"aug_level": 0.1, "size": 16}, "no super-resolution stage runs"),
    ({"aug_level": 0.0, "size": 16}, "aug_level=0.0 has no effect: no super-resolution stage runs"),
    ({"lowres_consistency": 1.5}, "lowres_consistency is 1.5"),
    ({"lowres_consistency": 2, "size": 16}, "no super-resolution stage runs"),
    ({"lowres_consistency": 0, "size": 16}, "lowres_consistency=0 has no effect: no super-resolution stage runs"),
    ({"size": 48}, "size=48: this model makes 16, 32, 64 px"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
    ({"sr_batch_size": 0}, "sr_batch_size is 0"),
    ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
    ({"prompt": "a red circle " * 30}, "this model reads 32; shorten it"),
    ({"negative_prompt": "a red circle " * 30}, "this model reads 32; shorten it"),
    ({"negative_prompt": ["a", "a"]}, "2 negative prompts for 1 prompts"),
    ({"prompt_embeds": torch.zeros(1, 2, WIDTH)}, "both given"),
    ({"prompt": None, "prompt_embeds": torch.zeros(2, WIDTH)}, "prompt_embeds has shape"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 2, 8)}, "width 8 but stage base was trained on 16"),
    ({"prompt_mask": torch.ones(1, 2)}, "without prompt_embeds"),
    ({**EMBEDS, "prompt_mask": torch.tensor([[1, 1], [0, 0]])}, "prompt_embeds has a row without a real token"),
    ({**EMBEDS, "prompt_mask": torch.ones(2, 3)}, r"mask of prompt_embeds has shape \(2, 3\); expected \(2, 2\)"),
    ({**EMBEDS, "prompt_mask": torch.ones(1, 2)}, r"mask of prompt_embeds has shape \(1, 2\); expected \(2, 2\)"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 0, WIDTH)}, r"prompt_embeds has shape \(1, 0, 16\)"),
    ({"generator": [seeded(), seeded()]}, "generator is a list of 2 for 1 pictures"),
    ({"callback_on_step_end_tensor_inputs": ["eps"]}, "names 'eps'; expected some of z, latents, x0, prompt_embeds"),
    ({"image": "cat.png"}, "image is a str"),
    ({"image": torch.full((3, 16, 16), -0.5)}, "values from -0.5"),
    ({"image": torch.full((3, 16, 16), 1.5)}, "values from 1.5 to 1.5"),
    ({"image": torch.zeros(4, 16, 16)}, "3 channels"),
    ({"image": torch.zeros(3, 3, 16, 16), "prompt": ["a", "a"]}, "2 prompts for 3 pictures"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CALLS)
def test_a_bad_call_names_the_value(pipe, change, message):
    with Calls(pipe.base_unet) as calls, pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "a red circle", **change})
    assert not calls.samples


def test_negative_prompt_without_guidance_warns(pipe, monkeypatch):
    import imagen.cascade.plan

    said = []
    monkeypatch.setattr(imagen.cascade.plan.logger, "warning", said.append)
    sample(pipe, PROMPTS[0], negative_prompt="a", guidance_scale=1, size=16)
    assert len(said) == 1
    assert "no effect" in said[0]
    sample(pipe, PROMPTS[0], negative_prompt="a", guidance_scale=2, size=16)
    sample(pipe, PROMPTS[0], guidance_scale=1, size=16)
    assert len(said) == 1


def test_the_encoder_must_be_the_one_the_networks_know():
    pipe = tiny_pipeline(text_encoder=None, tokenizer=tiny_tokenizer(), stages=tiny_stages())
    with pytest.raises(ValueError, match="no tokenizer and text_encoder"):
        pipe("a red circle")
    assert sample(tiny_pipeline(text_encoder=tiny_text_encoder(1)), PROMPTS[0], size=16).images.shape[0] == 1


def test_a_stage_may_start_from_pictures_with_other_channels_than_it_makes() -> None:
    pipe = ImagenPipeline(
        sr256_unet=tiny_sr(2, text_dim=None, lowres_channels=1),
        sr256_scheduler=make_scheduler("ddim", CosineSchedule(), "sample"),
        stages={"sr256": {"size": 16, "lowres_size": 8, "num_inference_steps": 2}},
    )
    pipe.set_progress_bar_config(disable=True)
    grey = torch.rand(2, 1, 8, 8, generator=seeded(1))
    assert sample(pipe, image=grey).images.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="this model's pictures have 1 channels"):
        sample(pipe, image=grey.expand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="sr256: lowres_consistency is 2; expected 0 where pictures of 3 channels"):
        sample(pipe, image=grey, lowres_consistency=2)


def test_what_a_later_stage_cannot_do_is_told_before_the_first_runs():
    grey = tiny_base(in_channels=1, out_channels=1)
    for changes, message in [
        ({"sr256_scheduler": FlowMatchEulerDiscreteScheduler()}, "FlowMatchEulerDiscreteScheduler cannot step x0"),
        ({"sr256_scheduler": PNDMScheduler()}, "PNDMScheduler cannot step x0"),
        ({"base_unet": grey}, "base makes pictures of 1 channels and sr256 starts from 3; give size=16"),
        ({"sr1024_unet": tiny_sr(3, text_dim=8)}, "the text has width 16 but stage sr1024 was trained on 8; use the"),
    ]:
        pipe = tiny_pipeline(**changes)
        with Calls(pipe.base_unet) as calls, pytest.raises(ValueError, match=message):
            sample(pipe, PROMPTS[0])
        assert not calls.samples
    pipe = tiny_pipeline()
    pipe.set_stage_defaults("sr1024", aug_schedule={"kind": "linear", "s": 0.1})
    with (
        Calls(pipe.base_unet) as calls,
        pytest.raises(ValueError, match="stage sr1024: the linear schedule: unknown key 's'"),
    ):
        sample(pipe, PROMPTS[0])
    pipe = tiny_pipeline(sr256_scheduler=make_scheduler("unipc", CosineSchedule(), "sample"))
    with pytest.raises(ValueError, match="stage sr256: UniPCMultistepScheduler takes no list of timesteps"):
        sample(pipe, PROMPTS[0], num_inference_steps={32: "smart27"})
    assert sample(pipe, PROMPTS[0], size=16).images.shape[-1] == 16, "a stage that does not run is not looked at"


def test_what_is_no_generator_or_no_mask_is_told(pipe):
    with pytest.raises(ValueError, match="generator holds a int; expected torch.Generator"):
        sample(pipe, PROMPTS[0], generator=5)
    with pytest.raises(ValueError, match="generator holds a int"):
        sample(pipe, PROMPTS[0], generator=[5])
    with pytest.raises(ValueError, match="mask of prompt_embeds is a list; expected a tensor"):
        sample(pipe, prompt_embeds=torch.zeros(1, 2, WIDTH), prompt_mask=[[True, True]])


def test_the_reader_takes_one_prompt_or_several(pipe):
    one, several = pipe.reader.encode(PROMPTS[0]), pipe.reader.encode([PROMPTS[0]])
    assert torch.equal(one[0], several[0])
    with pytest.raises(ValueError, match="expected a string or a non-empty list"):
        pipe.reader.encode([])
