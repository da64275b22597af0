"""encode_prompt: prompts become tensors once, and pictures come of them without an encoder, the same to the bit."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers import IFPipeline

from imagen import ImagenPipeline
from imagen.cascade.text import EncodedPrompt
from tests.factories import WIDTH, sample, tiny_clip, tiny_clip_tokenizer, tiny_pipeline

PROMPTS = ["a red circle", "two blue star", "a small green circle"]
READINGS: list[dict[str, Any]] = [{}, {"padding": "visible", "null": "empty", "lowercase": True}]


def without_encoder(pipe: ImagenPipeline) -> ImagenPipeline:
    alone: ImagenPipeline = ImagenPipeline.from_pipe(pipe, text_encoder=None, tokenizer=None)
    alone.set_progress_bar_config(disable=True)
    return alone


def expect_same_pictures(encoded: EncodedPrompt, pipe: ImagenPipeline, **call: Any) -> None:
    wanted = sample(pipe, **call).images
    times = {name: call[name] for name in ("num_images_per_prompt", "guidance_scale") if name in call}
    for one in (pipe, without_encoder(pipe)):
        assert torch.equal(sample(one, **encoded._asdict(), **times).images, wanted)


@pytest.mark.parametrize("reading", READINGS, ids=["ours", "as IF"])
@pytest.mark.parametrize("negative", [None, "a", "", PROMPTS[::-1]], ids=["null", "one", "empty", "each"])
def test_pictures_of_encoded_prompts_are_those_of_the_prompts(reading: dict[str, Any], negative: Any) -> None:
    pipe = tiny_pipeline(text=reading)
    encoded = pipe.encode_prompt(PROMPTS, negative_prompt=negative)
    expect_same_pictures(encoded, pipe, prompt=PROMPTS, negative_prompt=negative, num_images_per_prompt=2)


def test_one_prompt_and_a_clip() -> None:
    pipe = tiny_pipeline(text_encoder=tiny_clip(), tokenizer=tiny_clip_tokenizer(), max_length=20)
    expect_same_pictures(pipe.encode_prompt(PROMPTS[0]), pipe, prompt=PROMPTS[0])


def test_without_guidance_there_is_no_other_half() -> None:
    pipe = tiny_pipeline()
    encoded = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False, negative_prompt="a")
    assert (encoded.negative_prompt_embeds, encoded.negative_prompt_mask) == (None, None)
    expect_same_pictures(encoded, pipe, prompt=PROMPTS, guidance_scale=1)


def test_names_and_order_are_those_of_diffusers() -> None:
    ours = list(inspect.signature(ImagenPipeline.encode_prompt).parameters.values())
    theirs = list(inspect.signature(IFPipeline.encode_prompt).parameters.values())
    assert [(one.name, one.default) for one in ours] == [(one.name, one.default) for one in theirs[: len(ours)]]
    takes = inspect.signature(ImagenPipeline.__call__).parameters
    assert set(EncodedPrompt._fields) <= takes.keys()
    pipe = tiny_pipeline()
    text, negative = pipe.encode_prompt(PROMPTS[0], True, 1, None, "a")[:2]  # what diffusers returns
    assert (text.shape, negative.shape) == ((1, 4, WIDTH), (1, 2, WIDTH))


def test_rows_are_repeated_prompt_by_prompt_as_in_diffusers() -> None:
    pipe = tiny_pipeline()
    once, often = (
        pipe.encode_prompt(PROMPTS[:2], num_images_per_prompt=times, negative_prompt=PROMPTS[1:]) for times in (1, 3)
    )
    for one, many in zip(once, often, strict=True):
        assert torch.equal(many, torch.stack([one[0]] * 3 + [one[1]] * 3))
    wanted = sample(pipe, PROMPTS[:2], negative_prompt=PROMPTS[1:], num_images_per_prompt=3).images
    torch.testing.assert_close(sample(pipe, **often._asdict()).images, wanted, atol=1e-4, rtol=0)
    shared = pipe.encode_prompt(PROMPTS[:2], num_images_per_prompt=3)
    assert (len(shared.prompt_embeds), len(shared.negative_prompt_embeds)) == (6, 1)


def test_the_tensors_go_where_they_are_asked_to() -> None:
    encoded = tiny_pipeline().encode_prompt(PROMPTS[0], device="meta")
    assert {part.device.type for part in encoded} == {"meta"}
    assert {part.device.type for part in tiny_pipeline().encode_prompt(PROMPTS[0])} == {"cpu"}
    half = tiny_pipeline().to(torch.float16).encode_prompt(PROMPTS[0])
    assert half.prompt_embeds.dtype == torch.float32  # what the call computes with


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"negative_prompt": ["a", "two"]}, "2 negative prompts for 3 prompts; give one, or one for each"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"prompt": "a " * 40}, "nothing is cut silently"),
        ({"prompt": None}, "expected a string or a non-empty list of strings"),
    ],
)
def test_a_mistake_is_told_as_the_call_tells_it(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline().encode_prompt(**{"prompt": PROMPTS, **given})
    with pytest.raises(ValueError, match="load them, or pass prompt_embeds"):
        without_encoder(tiny_pipeline()).encode_prompt("a red circle")
