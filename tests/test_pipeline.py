"""A call of the pipeline: what a picture depends on, what the networks are given, what comes out."""

from __future__ import annotations

import io

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from imagen import ImagenPipeline
from imagen.diffusion.augmentation import resize
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from tests.factories import WIDTH, Calls, sample, seeded, tiny_base, tiny_pipeline

PROMPTS = ["a red circle", "two blue star", "a small green circle"]


@pytest.fixture(scope="module")
def pipe() -> ImagenPipeline:
    return tiny_pipeline()


# --- what a picture depends on ----------------------------------------------------------------------------------------


def test_a_picture_does_not_depend_on_its_batch(pipe):
    together = sample(pipe, PROMPTS, generator=[seeded(seed) for seed in (5, 6, 7)])
    for index, prompt in enumerate(PROMPTS):
        alone = sample(pipe, prompt, generator=seeded(5 + index))
        for size, pictures in together.stages.items():
            torch.testing.assert_close(pictures[index], alone.stages[size][0], atol=1e-4, rtol=0)


def test_noise_is_exactly_that_of_the_picture_alone(pipe):
    for unet in (pipe.base_unet, pipe.sr1024_unet):
        with Calls(unet) as many:
            sample(pipe, PROMPTS, num_inference_steps=1)
        with Calls(unet) as one:
            sample(pipe, PROMPTS[0], num_inference_steps=1)
        assert torch.equal(many.samples[0]["z"][0], one.samples[0]["z"][0])
        assert not torch.equal(many.samples[0]["z"][0], many.samples[0]["z"][1])


def test_one_generator_serves_every_picture_with_its_own_noise(pipe):
    four = sample(pipe, PROMPTS[0], num_images_per_prompt=4, size=16).images
    two = sample(pipe, PROMPTS[0], num_images_per_prompt=2, size=16).images
    torch.testing.assert_close(four[:2], two, atol=1e-4, rtol=0)
    assert min((four[i] - four[j]).abs().max() for i in range(4) for j in range(i)) > 0.01


def test_pictures_come_prompt_by_prompt(pipe):
    generators = [seeded(seed) for seed in range(6)]
    out = sample(pipe, PROMPTS, num_images_per_prompt=2, generator=generators, size=32).images
    alone = sample(pipe, PROMPTS[1], generator=seeded(3), size=32).images[0]
    torch.testing.assert_close(out[3], alone, atol=1e-4, rtol=0)


def test_a_generator_moves_on_and_the_global_one_is_used_without(pipe):
    generator = seeded()
    first, second = (sample(pipe, PROMPTS[0], generator=generator, size=16).images for _ in range(2))
    assert (first - second).abs().max() > 0.01
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(sample(pipe, PROMPTS[0], generator=None, size=16).images)
    assert torch.equal(*drawn)


def test_stopping_early_gives_the_picture_of_the_whole_run(pipe):
    whole = sample(pipe, PROMPTS)
    assert list(whole.stages) == [16, 32, 64]
    for size in (16, 32):
        part = sample(pipe, PROMPTS, size=size)
        assert torch.equal(part.images, whole.stages[size])
        assert list(part.stages) == [s for s in (16, 32, 64) if s <= size]


def test_starting_from_an_earlier_picture_gives_the_rest_of_the_whole_run(pipe):
    whole = sample(pipe, PROMPTS)
    later = sample(pipe, PROMPTS, image=whole.stages[16])
    assert list(later.stages) == [32, 64]
    torch.testing.assert_close(later.images, whole.images, atol=1e-3, rtol=0)
    last = sample(pipe, PROMPTS, image=whole.stages[32])
    assert list(last.stages) == [64]
    torch.testing.assert_close(last.images, whole.images, atol=1e-3, rtol=0)


@pytest.mark.parametrize("sr_batch_size", [1, 2, None])
def test_chunks_change_nothing_but_the_size_of_a_call(pipe, sr_batch_size):
    whole = sample(pipe, PROMPTS, sr_batch_size=3)
    with Calls(pipe.sr1024_unet) as calls, Calls(pipe.base_unet) as base:
        part = sample(pipe, PROMPTS, sr_batch_size=sr_batch_size)
    torch.testing.assert_close(part.images, whole.images, atol=1e-4, rtol=0)
    assert max(len(call["z"]) for call in calls.samples) == 2 * (sr_batch_size or 3)
    assert {len(call["z"]) for call in base.samples} == {2 * len(PROMPTS)}, "the base is not limited"


# --- what the networks are given --------------------------------------------------------------------------------------


def test_text_is_projected_once_per_stage_and_each_prompt_once(pipe):
    with Calls(pipe.base_unet) as base, Calls(pipe.sr256_unet) as sr256, Calls(pipe.sr1024_unet) as sr1024:
        sample(pipe, PROMPTS, num_images_per_prompt=2, num_inference_steps=5)
    for calls in (base, sr256, sr1024):
        assert len(calls.texts) == 1
        assert len(calls.texts[0]) == len(PROMPTS) + 1  # and the null text once
        assert len(calls.samples) == 5
        assert "text" not in calls.samples[0]


def test_without_guidance_the_unconditional_half_is_not_computed(pipe):
    with Calls(pipe.base_unet) as base, Calls(pipe.sr256_unet) as sr256:
        sample(pipe, PROMPTS, guidance_scale={16: 1, 32: 4.0})
    assert [len(call["z"]) for call in base.samples] == [3, 3]
    assert len(base.texts[0]) == 3
    assert [len(call["z"]) for call in sr256.samples] == [6, 6]


def test_guidance_lies_between_its_halves(pipe):
    """w = 0 is the unconditional half alone, w = 1 the conditional one; equal halves make w meaningless (eq. 2)."""
    prompt, negative = PROMPTS[:2]
    conditional = sample(pipe, prompt, guidance_scale=1).images
    unconditional = sample(pipe, negative, guidance_scale=1).images
    assert (conditional - unconditional).abs().max() > 0.01
    zero = sample(pipe, prompt, negative_prompt=negative, guidance_scale=0).images
    torch.testing.assert_close(zero, unconditional, atol=1e-3, rtol=0)
    equal = sample(pipe, prompt, negative_prompt=prompt, guidance_scale=7).images
    torch.testing.assert_close(equal, conditional, atol=1e-3, rtol=0)


def test_one_negative_prompt_or_one_for_each(pipe):
    shared = sample(pipe, PROMPTS[:2], negative_prompt=PROMPTS[2]).images
    each = sample(pipe, PROMPTS[:2], negative_prompt=[PROMPTS[2]] * 2).images
    mixed = sample(pipe, PROMPTS[:2], negative_prompt=[PROMPTS[2], "a"]).images
    torch.testing.assert_close(shared, each, atol=1e-4, rtol=0)
    torch.testing.assert_close(shared[0], mixed[0], atol=1e-4, rtol=0)
    assert (shared[1] - mixed[1]).abs().max() > 1e-3


def test_embeddings_stand_for_their_prompts(pipe):
    from imagen.text.encoder import encode

    embeds, mask = encode(pipe.tokenizer, pipe.text_encoder, PROMPTS)
    negative, negative_mask = encode(pipe.tokenizer, pipe.text_encoder, ["a"])
    embeds[~mask] = 100.0  # padding changes nothing
    given = sample(
        pipe,
        prompt_embeds=embeds,
        prompt_mask=mask,
        negative_prompt_embeds=negative,
        negative_prompt_mask=negative_mask,
    )
    torch.testing.assert_close(given.images, sample(pipe, PROMPTS, negative_prompt="a").images, atol=1e-4, rtol=0)
    without_encoder = tiny_pipeline(tokenizer=None, text_encoder=None)
    alone = sample(without_encoder, prompt_embeds=embeds[:1, : int(mask[0].sum())])
    torch.testing.assert_close(alone.images, sample(pipe, PROMPTS[0]).images, atol=1e-4, rtol=0)


def test_the_low_resolution_picture_is_noised_at_the_level_the_network_is_told(pipe):
    flat = torch.full((1, 3, 16, 16), 0.75)  # 0.5 in [-1, 1]
    seen = {}
    for level in (0.0, 0.5, 1.0):
        with Calls(pipe.sr256_unet) as calls:
            sample(pipe, PROMPTS[0], image=flat, size=32, aug_level=level)
        lowres, timestep = calls.samples[0]["lowres"], calls.samples[0]["aug_timestep"]
        assert lowres.shape == (2, 3, 32, 32)
        assert torch.equal(lowres[0], lowres[1])
        assert timestep.tolist() == [min(max(1000 * level - 0.5, 0), 999.5)] * 2
        seen[level] = lowres[0]
        assert all(torch.equal(call["lowres"], lowres) for call in calls.samples)  # noised once, not at every step
    assert (seen[0.0] - 0.5).abs().max() < 0.1
    assert abs(seen[0.5].mean() - 0.5 / 2**0.5) < 0.15
    assert abs(seen[1.0].mean()) < 0.15


def test_a_super_resolution_stage_keeps_the_colours_of_its_input(pipe):
    halves = torch.zeros(2, 3, 16, 16)
    halves[0, 0, :, 8:], halves[1, :, 4:] = 0.8, 0.6
    given = {"size": 32, "aug_level": 0.5}

    def shift(**settings):
        made = sample(pipe, PROMPTS[:2], image=halves, **given, **settings).images
        return made, (resize(made, 16, "area") - halves).abs().mean()

    free, far = shift()
    held, near = shift(lowres_consistency={32: 1})
    assert torch.equal(sample(pipe, PROMPTS[:2], image=halves, lowres_consistency=0, **given).images, free)
    assert far > 0.2  # random weights
    assert near < 0.05
    assert (held - free).abs().mean() > 0.1
    assert pipe.settings(lowres_consistency=(3, 4))[64].lowres_consistency == 4
    assert pipe.settings()[64].lowres_consistency == 0
    whole = sample(pipe, PROMPTS[0], height=32, width=64, lowres_consistency=1).stages
    assert (resize(whole[64], (16, 32), "area") - whole[32]).abs().mean() < 0.05


def test_per_stage_values_in_every_form(pipe):
    forms = [(3, 2, 1), [3, 2, 1], {16: 3, 32: 2, 64: 1}, {"base": 3, "sr256": 2, "sr1024": 1}]
    pictures = []
    for form in forms:
        with Calls(pipe.base_unet) as base, Calls(pipe.sr256_unet) as sr256, Calls(pipe.sr1024_unet) as sr1024:
            pictures.append(sample(pipe, PROMPTS[0], num_inference_steps=form).images)
        assert [len(calls.samples) for calls in (base, sr256, sr1024)] == [3, 2, 1]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    assert [s.num_inference_steps for s in pipe.settings(num_inference_steps={64: 9}).values()] == [2, 2, 9]
    assert pipe.settings(size=32, guidance_scale=[7, 8, 9])[32].guidance_scale == 8
    assert pipe.settings(aug_level=(0.3, 0.4))[32].aug_level == 0.3


def test_a_swapped_scheduler_just_works():
    pipe = tiny_pipeline()
    before = sample(pipe, PROMPTS[0], size=16).images
    pipe.base_scheduler = DPMSolverMultistepScheduler.from_config(pipe.base_scheduler.config)
    config = dict(pipe.base_scheduler.config)
    swapped = sample(pipe, PROMPTS[0], size=16, num_inference_steps=6).images
    assert torch.isfinite(swapped).all()
    assert (before - swapped).abs().max() > 1e-3
    assert config == dict(pipe.base_scheduler.config)
    pipe.base_scheduler = DDIMScheduler.from_config(config)
    many, few = (sample(pipe, PROMPTS[0], size=16, num_inference_steps=n).images for n in (32, 16))
    assert (many - few).abs().mean() < 0.03  # one and the same ODE


def test_a_learned_variance_is_understood():
    scheduler = make_scheduler("ddpm", CosineSchedule(), "epsilon")
    scheduler = type(scheduler).from_config(scheduler.config, variance_type="learned_range")
    pipe = tiny_pipeline(base_unet=tiny_base(out_channels=6), base_scheduler=scheduler)
    assert torch.isfinite(sample(pipe, PROMPTS[0], size=16, num_inference_steps=5).images).all()


# --- callbacks, interruption, progress --------------------------------------------------------------------------------


def test_callback_after_every_step_of_every_stage(pipe):
    seen = []

    def note(p, step, timestep, tensors):
        assert p is pipe
        assert 0 <= timestep < 1000
        seen.append((p.stage, step, p.num_timesteps, p.guidance_scale, *(t.shape[-1] for t in tensors.values())))

    inputs = ["z", "x0"]
    sample(
        pipe,
        PROMPTS,
        num_inference_steps=(2, 1, 1),
        callback_on_step_end=note,
        callback_on_step_end_tensor_inputs=inputs,
    )
    assert seen == [
        ("base", 0, 2, 3.0, 16, 16),
        ("base", 1, 2, 3.0, 16, 16),
        ("sr256", 0, 1, 3.0, 32, 32),
        ("sr1024", 0, 1, 3.0, 64, 64),
    ]
    assert pipe.stage is None


def test_callback_may_replace_z_and_nothing_else(pipe):
    def zero(p, step, timestep, tensors):
        assert tensors.keys() == {"z", "latents"}, "what is handed over unasked"
        return {"z": torch.zeros_like(tensors["z"])} if p.stage == "base" and step == 1 else None

    def zero_in_place(p, step, timestep, tensors):
        return {"z": tensors["z"].zero_()} if step == 1 else None

    for callback in (zero, zero_in_place):
        out = sample(pipe, PROMPTS, callback_on_step_end=callback, size=16)
        assert torch.equal(out.images, torch.full_like(out.images, 0.5))

    with pytest.raises(ValueError, match="only z can be replaced"):
        sample(
            pipe,
            PROMPTS,
            callback_on_step_end=lambda p, i, t, tensors: {"x0": tensors["x0"] * 0},
            callback_on_step_end_tensor_inputs=["z", "x0"],
        )
    for answer, message in [
        (True, "returned a bool; expected None or"),
        (torch.zeros(1), "returned a Tensor; expected None or"),
        ({"z": 0}, "returned a int; expected None or"),
        ({"z": torch.zeros(1)}, r"made z \(1,\); expected \(1, 3, 16, 16\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample(pipe, PROMPTS[0], callback_on_step_end=lambda *_, answer=answer: answer)


def test_what_is_not_finite_is_told_and_not_made_black(pipe):
    embeds = torch.full((1, 3, WIDTH), torch.nan)
    with pytest.raises(ValueError, match="stage base made numbers that are not finite"):
        sample(pipe, prompt_embeds=embeds, size=16)


def test_stage_callback_comes_with_the_pictures_of_each_stage(pipe):
    seen = []
    sample(pipe, PROMPTS, output_type="pil", callback_on_stage_end=lambda p, size, images: seen.append((size, images)))
    assert [size for size, _ in seen] == [16, 32, 64]
    assert [image.size for image in seen[1][1]] == [(32, 32)] * 3


def test_interrupt_ends_with_the_clean_estimate_and_runs_no_later_stage(pipe):
    estimates = []

    def stop(p, step, timestep, tensors):
        estimates.append(tensors["x0"])
        p._interrupt = step == 1

    inputs = ["x0"]
    out = sample(
        pipe,
        PROMPTS,
        num_inference_steps=4,
        callback_on_step_end=stop,
        callback_on_step_end_tensor_inputs=inputs,
    )
    assert len(estimates) == 2
    assert list(out.stages) == [16]
    torch.testing.assert_close(out.images, estimates[-1].clamp(-1, 1) / 2 + 0.5)
    assert list(sample(pipe, PROMPTS).stages) == [16, 32, 64]  # the next call starts afresh


def test_progress_bar_names_the_stage_and_follows_its_settings():
    pipe = tiny_pipeline()
    shown = io.StringIO()
    pipe.set_progress_bar_config(disable=False, file=shown, desc="job", mininterval=0)
    sample(pipe, PROMPTS[0])
    for text in ("job base 16px", "job sr256 32px", "job sr1024 64px", "2/2"):
        assert text in shown.getvalue()
