"""Callbacks written for diffusers: its names, its ready-made ones, and guidance that changes while a stage runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
)

from imagen import ImagenPipeline
from tests.factories import WIDTH, Calls, sample, tiny_base, tiny_pipeline

PROMPTS = ["a red circle", "two blue star"]


@pytest.fixture(scope="module")
def pipe() -> ImagenPipeline:
    return tiny_pipeline()


def setting(scales: dict[int, Any]) -> Any:
    """A callback that sets the guidance after some steps."""

    def callback(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        if step in scales:
            pipe._guidance_scale = scales[step]
        return tensors

    return callback


def rows(pipe: ImagenPipeline, callback: Any, slot: str = "base", **asked: Any) -> list[int]:
    """Rows that a network saw at each of four steps: two for a guided picture, one without guidance."""
    given = {"size": 16, "num_inference_steps": 4, "callback_on_step_end": callback, **asked}
    with Calls(getattr(pipe, f"{slot}_unet")) as calls:
        sample(pipe, PROMPTS[0], **given)
    return [len(call["z"]) for call in calls.samples]


# --- guidance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [0, 0.0, 0.5, 1.0])
def test_guidance_is_off_from_the_step_after_it_was_set_to_nothing(pipe: ImagenPipeline, off: float) -> None:
    assert rows(pipe, setting({1: off})) == [2, 2, 1, 1]
    assert rows(pipe, setting({0: off, 2: 3.0})) == [2, 1, 1, 2]
    assert rows(pipe, setting({})) == [2, 2, 2, 2]


def test_the_half_that_stays_is_the_one_with_the_text(pipe: ImagenPipeline) -> None:
    """Off from the first step on but one: what follows is a run without guidance from the same state."""
    states: dict[str, list[torch.Tensor]] = {"off": [], "one": []}

    def note(name: str, scale: float, like: list[torch.Tensor] | None = None) -> Any:
        def callback(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._guidance_scale = scale
            z = like[0] if like and step == 0 else tensors["latents"]
            states[name].append(z.clone())
            return {"latents": z.clone()}

        return callback

    asked = {"size": 16, "num_inference_steps": 4}
    off = sample(pipe, PROMPTS, callback_on_step_end=note("off", 0.0), **asked)
    like = note("one", 1.0, states["off"])
    one = sample(pipe, PROMPTS, callback_on_step_end=like, guidance_scale=1.0, **asked)
    torch.testing.assert_close(off.images, one.images, atol=1e-5, rtol=0)
    none = sample(pipe, PROMPTS, callback_on_step_end=note("off", 3.0), **asked)
    assert (none.images - off.images).abs().max() > 1e-3


@pytest.mark.parametrize("guidance", ["cfg", "apg(momentum=-0.5)", "rescaled(phi=0.5)+cfg"])
def test_a_scale_set_is_that_of_the_steps_after_it(pipe: ImagenPipeline, guidance: str) -> None:
    """The rest of a run with that scale from the same state; what guidance remembers of the steps before stays."""
    asked = {"size": 16, "num_inference_steps": 4, "guidance": guidance}
    seen, after_first = [], []

    def grow(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        seen.append(pipe.guidance_scale)
        after_first.append(tensors["z"].clone())
        pipe._guidance_scale = 6.0

    grown = sample(pipe, PROMPTS, guidance_scale=2.0, callback_on_step_end=grow, **asked).images
    assert seen == [2.0, 6.0, 6.0, 6.0]
    assert pipe.guidance_scale is None

    def same(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> Any:
        return {"z": after_first[0]} if step == 0 else None

    assert torch.equal(sample(pipe, PROMPTS, guidance_scale=6.0, callback_on_step_end=same, **asked).images, grown)
    plain, kept = (
        sample(pipe, PROMPTS, guidance_scale=2.0, callback_on_step_end=setting(scales), **asked).images
        for scales in ({}, {0: 2})
    )
    assert torch.equal(plain, kept)
    assert not torch.equal(plain, grown)


def test_every_stage_begins_with_its_own_guidance(pipe: ImagenPipeline) -> None:
    seen = []

    def callback(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        seen.append((pipe.stage, pipe.guidance_scale))
        pipe._guidance_scale = 0.0

    assert rows(pipe, callback, "sr256", size=32, num_inference_steps=2, guidance_scale=[3, 2]) == [2, 1]
    assert seen == [("base", 3.0), ("base", 0.0), ("sr256", 2.0), ("sr256", 0.0)]
    assert rows(pipe, None) == [2, 2, 2, 2], "the next call starts afresh"


def test_a_call_with_the_unconditional_half_alone_keeps_it(pipe: ImagenPipeline) -> None:
    """guidance_scale=0 of a call is eq. 2's; a callback that sets nothing does not make diffusers' 0 of it."""
    asked = {"size": 16, "guidance_scale": 0.0}
    plain = sample(pipe, PROMPTS, **asked).images
    assert torch.equal(sample(pipe, PROMPTS, callback_on_step_end=setting({}), **asked).images, plain)
    assert not torch.equal(sample(pipe, PROMPTS, size=16, guidance_scale=1.0).images, plain)


@pytest.mark.parametrize(
    ("value", "scale", "message"),
    [
        (-1, 3.0, "pipe._guidance_scale is -1; expected a finite number of at least 0"),
        (float("nan"), 3.0, "pipe._guidance_scale is nan"),
        (None, 3.0, "pipe._guidance_scale is None"),
        (2.0, 1.0, "_guidance_scale is 2.0 and stage base began at guidance_scale=1, .* begin above 1"),
    ],
)
def test_a_scale_that_cannot_be_is_told(pipe: ImagenPipeline, value: Any, scale: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(pipe, PROMPTS, size=16, guidance_scale=scale, callback_on_step_end=setting({0: value}))


def test_a_network_that_knows_no_guidance_has_none_to_set() -> None:
    bare = tiny_pipeline(base_unet=tiny_base(text_dim=None), tokenizer=None, text_encoder=None)
    with Calls(bare.base_unet) as calls:
        for scale in (0, 2.0):
            sample(bare, size=16, callback_on_step_end=setting({0: scale}))
    assert {len(call["z"]) for call in calls.samples} == {1}


# --- diffusers' callbacks ---------------------------------------------------------------------------------------------


class Noting(PipelineCallback):
    """Notes what it is given."""

    tensor_inputs = ["latents", "x0", "prompt_embeds"]

    def callback_fn(self, pipeline: Any, step_index: int, timesteps: float, callback_kwargs: Any) -> Any:
        self.seen = {name: value.clone() for name, value in callback_kwargs.items()}
        return callback_kwargs


def test_the_ready_made_cutoff_ends_guidance(pipe: ImagenPipeline) -> None:
    assert rows(pipe, SDCFGCutoffCallback(cutoff_step_ratio=0.25)) == [2, 2, 1, 1]
    assert rows(pipe, SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)) == [2, 2, 2, 1]
    assert rows(pipe, SDCFGCutoffCallback(0.25), "sr256", size=32) == [2, 2, 1, 1]
    asked = {"size": 16, "num_inference_steps": 4}
    ready = sample(pipe, PROMPTS, callback_on_step_end=SDCFGCutoffCallback(0.25), **asked).images
    assert torch.equal(ready, sample(pipe, PROMPTS, callback_on_step_end=setting({1: 0.0}), **asked).images)


def test_a_callback_of_diffusers_says_itself_what_it_is_given(pipe: ImagenPipeline) -> None:
    alone, other = Noting(), Noting()
    asked = {"size": 16, "callback_on_step_end_tensor_inputs": ["z"]}
    sample(pipe, PROMPTS, num_images_per_prompt=2, callback_on_step_end=alone, **asked)
    assert alone.seen.keys() == {"latents", "x0", "prompt_embeds"}
    assert alone.seen["latents"].shape == alone.seen["x0"].shape == (4, 3, 16, 16)
    both = MultiPipelineCallbacks([SDCFGCutoffCallback(None, 0), other])
    assert rows(pipe, both, callback_on_step_end_tensor_inputs=["z"]) == [2, 1, 1, 1]
    assert other.seen.keys() == {"latents", "x0", "prompt_embeds"}


@pytest.mark.parametrize("negative", ["two green star", ["a blue star", "two green star"], None])
def test_prompt_embeds_are_both_halves_as_in_stable_diffusion(pipe: ImagenPipeline, negative: Any) -> None:
    note, text = Noting(), pipe.reader.encode(PROMPTS)[0]
    sample(pipe, PROMPTS, negative_prompt=negative, num_images_per_prompt=2, size=16, callback_on_step_end=note)
    first, second = note.seen["prompt_embeds"].chunk(2)
    assert torch.equal(second[:, : text.shape[1]], text.repeat_interleave(2, 0))
    wanted = torch.zeros(1, 1, WIDTH) if negative is None else pipe.reader.encode(negative)[0]
    wanted = wanted.repeat_interleave(4 // len(wanted), 0)
    assert torch.equal(first[:, : wanted.shape[1]], wanted)
    sample(pipe, PROMPTS, size=16, guidance_scale=1.0, callback_on_step_end=note)
    assert torch.equal(note.seen["prompt_embeds"], text)


@pytest.mark.parametrize("name", ["latents", "z"])
def test_the_state_is_replaced_under_either_name(pipe: ImagenPipeline, name: str) -> None:
    def zero(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        assert all(value is tensors[name] for value in tensors.values())
        return {**tensors, name: torch.zeros_like(tensors[name])} if step == 1 else tensors

    for names in (("z", "latents"), (name,)):
        asked = {"callback_on_step_end": zero, "callback_on_step_end_tensor_inputs": names}
        made = sample(pipe, PROMPTS, size=16, **asked).images
        assert torch.equal(made, torch.full_like(made, 0.5))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda t: {"z": t["z"] + 1, "latents": t["z"] + 2}, "two states, as z and as latents"),
        (lambda t: {"latents": 0}, "returned a int; expected None or"),
        (lambda t: {"latents": torch.zeros(1)}, r"made z \(1,\); expected \(2, 3, 16, 16\)"),
        (lambda t: t.update(prompt_embeds=2 * t["prompt_embeds"]) or t, "; only z can be replaced"),
        (lambda t: {"prompt_embeds": 2 * t["prompt_embeds"]}, r"\['prompt_embeds'\]; only z can be replaced"),
    ],
)
def test_an_answer_of_something_else_than_one_state_is_told(pipe: ImagenPipeline, answer: Any, message: str) -> None:
    asked = {"size": 16, "callback_on_step_end_tensor_inputs": ["z", "prompt_embeds"]}
    with pytest.raises(ValueError, match=message):
        sample(pipe, PROMPTS, callback_on_step_end=lambda p, i, t, tensors: answer(tensors), **asked)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (3, "callback_on_step_end is 3; expected a function"),
        (SDXLCFGCutoffCallback(0.5), "SDXLCFGCutoffCallback names 'add_text_embeds'; expected some of z, latents"),
        (IPAdapterScaleCutoffCallback(0.5), "IPAdapterScaleCutoffCallback sets the scale of an IP-Adapter"),
        (
            MultiPipelineCallbacks([SDCFGCutoffCallback(0.5), IPAdapterScaleCutoffCallback(0.5)]),
            "IPAdapterScaleCutoffCallback sets the scale of an IP-Adapter",
        ),
    ],
    ids=["a number", "sdxl", "ip adapter", "ip adapter among others"],
)
def test_a_callback_for_what_is_not_here_is_told_before_anything_runs(
    pipe: ImagenPipeline, callback: Any, message: str
) -> None:
    with Calls(pipe.base_unet) as calls, pytest.raises(ValueError, match=message):
        sample(pipe, PROMPTS, callback_on_step_end=callback)
    assert not calls.samples


def test_a_model_without_text_has_no_prompt_embeds() -> None:
    bare = tiny_pipeline(base_unet=tiny_base(text_dim=None), tokenizer=None, text_encoder=None)
    with pytest.raises(
        ValueError, match="SDCFGCutoffCallback names 'prompt_embeds', and no stage that runs reads text"
    ):
        sample(bare, size=16, callback_on_step_end=SDCFGCutoffCallback(0.5))
