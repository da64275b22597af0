"""Several prompts and several pictures to start from in one call are the single calls, in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagen import ImagenPipeline
from imagen.diffusion.augmentation import resize
from tests.factories import Calls, sample, seeded, tiny_base, tiny_pipeline, tiny_sr

PROMPTS = ["a red circle", "two blue star"]


@pytest.fixture(scope="module")
def pipe() -> ImagenPipeline:
    return tiny_pipeline()


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed))


def check_equals_single_calls(pipe: ImagenPipeline, together: Any, singles: list[dict[str, Any]], **given: Any) -> None:
    """Row i of a call is the call for it alone, where each takes seed i."""
    alone = [sample(pipe, **single, **given, generator=seeded(seed)) for seed, single in enumerate(singles)]
    for size, pictures in together.stages.items():
        assert len(pictures) == len(singles)
        expected = torch.cat([out.stages[size] for out in alone])
        torch.testing.assert_close(pictures, expected, atol=1e-4, rtol=0)
        apart = (expected[:, None] - expected[None]).abs().amax((2, 3, 4))
        assert apart[~torch.eye(len(singles), dtype=torch.bool)].min() > 0.01, "inputs too alike to show a mistake"


@pytest.mark.parametrize("consistency", [0, 2])
def test_two_prompts_with_two_pictures_each_twice(pipe, consistency):
    starts, given = noise(1, 2, 3, 16, 16), {"lowres_consistency": consistency}
    generators = [seeded(seed) for seed in range(4)]
    together = sample(pipe, PROMPTS, image=starts, num_images_per_prompt=2, generator=generators, **given)
    singles = [{"prompt": PROMPTS[i], "image": starts[i]} for i in (0, 0, 1, 1)]
    assert list(together.stages) == [32, 64]
    check_equals_single_calls(pipe, together, singles, **given)


def test_two_prompts_with_one_picture_and_one_prompt_with_two(pipe):
    starts = noise(2, 2, 3, 32, 32)

    def twice(*args: Any, **given: Any) -> Any:
        return sample(pipe, *args, num_images_per_prompt=2, generator=[seeded(seed) for seed in range(4)], **given)

    one_picture = twice(PROMPTS, image=starts[0])
    check_equals_single_calls(pipe, one_picture, [{"prompt": PROMPTS[i], "image": starts[0]} for i in (0, 0, 1, 1)])
    one_prompt = twice(PROMPTS[0], image=starts)
    check_equals_single_calls(pipe, one_prompt, [{"prompt": PROMPTS[0], "image": starts[i]} for i in (0, 0, 1, 1)])


def test_negative_prompts_and_levels_go_with_their_pictures(pipe):
    starts, negative = noise(3, 2, 3, 16, 16), ["a small green circle", "a"]
    given = {"aug_level": {32: 0.5, 64: 0.0}, "guidance_scale": 5.0}
    together = sample(
        pipe,
        PROMPTS,
        negative_prompt=negative,
        image=starts,
        num_images_per_prompt=2,
        generator=[seeded(seed) for seed in range(4)],
        sr_batch_size=1,
        **given,
    )
    singles = [{"prompt": PROMPTS[i], "negative_prompt": negative[i], "image": starts[i]} for i in (0, 0, 1, 1)]
    check_equals_single_calls(pipe, together, singles, **given)


def test_without_text_every_start_is_made_as_often_as_asked():
    parts = {"tokenizer": None, "text_encoder": None, "sr1024_unet": None, "sr1024_scheduler": None}
    pipe = tiny_pipeline(base_unet=tiny_base(text_dim=None), sr256_unet=tiny_sr(text_dim=None), **parts)
    starts = noise(4, 3, 3, 16, 16)
    generators = [seeded(seed) for seed in range(6)]
    together = sample(pipe, image=starts, num_images_per_prompt=2, generator=generators)
    check_equals_single_calls(pipe, together, [{"image": starts[i]} for i in (0, 0, 1, 1, 2, 2)])


@pytest.mark.parametrize("large_first", [True, False])
def test_pictures_of_mixed_sizes_enter_where_the_smallest_fills_the_input(pipe, large_first):
    large, small = noise(5, 3, 32, 32), noise(6, 3, 16, 16)
    starts = [large, small] if large_first else [small, large]
    together = sample(pipe, PROMPTS, image=starts, generator=[seeded(0), seeded(1)])
    assert list(together.stages) == [32, 64]
    assert list(sample(pipe, PROMPTS[0], image=large).stages) == [64]
    reduced = resize(large[None], 16, "area")[0]  # what it is to the stage that takes 16 px
    fitting = [reduced, small] if large_first else [small, reduced]
    check_equals_single_calls(
        pipe, together, [{"prompt": p, "image": i} for p, i in zip(PROMPTS, fitting, strict=True)]
    )


def test_a_picture_that_is_too_large_is_reduced_by_area_before_it_is_noised(pipe):
    """Noise, not a flat picture: its means over areas are not its bicubic reduction, nor every second pixel."""
    start = noise(7, 3, 48, 48)
    with Calls(pipe.sr256_unet) as calls:
        sample(pipe, PROMPTS[0], image=start, size=32, aug_level=0.0)
    means = start.reshape(3, 16, 3, 16, 3).mean((2, 4)) * 2 - 1
    enlarged = resize(means[None], 32, "bicubic")[0]
    assert (calls.samples[0]["lowres"][0] - enlarged).abs().max() < 0.1  # the cosine leaves a little noise at level 0
    assert (enlarged - resize((start * 2 - 1)[None, :, ::3, ::3], 32, "bicubic")[0]).abs().max() > 0.5


def test_the_first_noise_is_the_same_in_every_dtype(pipe):
    """A seed means one picture: double precision rounds less, and draws nothing else."""
    double = tiny_pipeline().to(torch.float64)
    seen = []
    for one in (pipe, double):
        with Calls(one.base_unet) as base, Calls(one.sr256_unet) as sr256:
            sample(one, PROMPTS[0], size=32, num_inference_steps=1)
            sample(one, PROMPTS[0], size=32, num_inference_steps=1, image=noise(8, 3, 16, 16), aug_level=1.0)
        seen.append([base.samples[0]["z"], *(call[name] for call in sr256.samples for name in ("z", "lowres"))])
    narrow, wide = seen
    assert {z.dtype for z in narrow} == {torch.float32}
    assert {z.dtype for z in wide} == {torch.float64}
    for index in (0, 1, 3):  # the states: bit for bit
        assert torch.equal(narrow[index].double(), wide[index])
    torch.testing.assert_close(narrow[4].double(), wide[4], rtol=0, atol=1e-5)  # noise of the low-res picture, enlarged


def test_a_network_sees_no_more_pixels_at_once_than_its_limit(pipe, monkeypatch):
    """Which changes memory and no picture, also where the parts divide neither pictures nor halves of guidance."""
    whole = sample(pipe, PROMPTS, num_images_per_prompt=2)
    monkeypatch.setattr("imagen.cascade.runner.PIXELS_PER_CALL", 3 * 64 * 64 + 1)
    with Calls(pipe.base_unet) as base, Calls(pipe.sr1024_unet) as last:
        parts = sample(pipe, PROMPTS, num_images_per_prompt=2)
    torch.testing.assert_close(parts.images, whole.images, atol=1e-4, rtol=0)
    assert [len(call["z"]) for call in base.samples] == [8, 8]  # of 16 px all fit
    assert [len(call["z"]) for call in last.samples] == [3, 3, 2, 3, 3, 2]


def test_one_picture_that_is_over_the_limit_is_seen_alone(pipe, monkeypatch):
    monkeypatch.setattr("imagen.cascade.runner.PIXELS_PER_CALL", 100)
    with Calls(pipe.base_unet) as base:
        sample(pipe, PROMPTS, size=16, num_inference_steps=1)
    assert [len(call["z"]) for call in base.samples] == [1, 1, 1, 1]


def test_the_level_of_the_low_res_noise_does_not_change_the_noise_of_the_steps(pipe):
    """It is drawn at level 0 too, so that what follows of the generator is the same."""
    given = {"image": noise(9, 3, 16, 16), "size": 32, "num_inference_steps": 3}
    off, on = (sample(pipe, PROMPTS[0], aug_level=level, **given).images for level in (0.0, 1e-6))
    torch.testing.assert_close(off, on, atol=1e-3, rtol=0)
    assert (off - sample(pipe, PROMPTS[0], aug_level=0.0, generator=seeded(1), **given).images).abs().max() > 0.01
