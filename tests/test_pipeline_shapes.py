"""Pictures that are not square: every stage in proportion, and a start from a picture of that shape."""

from __future__ import annotations

import pytest
import torch

from imagen import ImagenPipeline
from imagen.cascade.pictures import load_pictures
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from tests.factories import Calls, sample, tiny_base, tiny_pipeline, tiny_sr

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def pipe() -> ImagenPipeline:
    return tiny_pipeline()


def test_every_stage_has_the_proportions_of_the_last(pipe):
    with Calls(pipe.sr256_unet) as calls:
        out = sample(pipe, PROMPT, height=32, width=96)
    assert {size: tuple(pictures.shape) for size, pictures in out.stages.items()} == {
        16: (1, 3, 8, 24),
        32: (1, 3, 16, 48),
        64: (1, 3, 32, 96),
    }
    assert calls.samples[0]["lowres"].shape[-2:] == (16, 48)
    alone = sample(pipe, PROMPT, height=8, width=24, size=16).images
    torch.testing.assert_close(alone, out.stages[16], atol=1e-6, rtol=0)


def test_a_square_asked_for_by_name_is_the_square(pipe):
    assert torch.equal(sample(pipe, PROMPT, height=64, width=64).images, sample(pipe, PROMPT).images)


def test_a_start_from_a_wide_picture_keeps_its_proportions(pipe):
    whole = sample(pipe, PROMPT, height=32, width=96)
    later = sample(pipe, PROMPT, image=whole.stages[16], height=32, width=96)
    assert list(later.stages) == [32, 64]
    torch.testing.assert_close(later.images, whole.images, atol=1e-3, rtol=0)


def test_a_picture_enters_where_it_fills_the_input_of_that_shape(pipe):
    whole = sample(pipe, PROMPT, height=64, width=32)
    assert whole.stages[32].shape[-2:] == (32, 16)
    later = sample(pipe, PROMPT, image=whole.stages[32], height=64, width=32)
    assert list(later.stages) == [64]
    torch.testing.assert_close(later.images, whole.images, atol=1e-3, rtol=0)
    square = torch.rand(3, 32, 32)
    assert list(sample(pipe, PROMPT, image=square).stages) == [64]
    assert list(sample(pipe, PROMPT, image=square, height=128, width=128).stages) == [32, 64]
    assert list(sample(pipe, PROMPT, image=torch.rand(3, 40, 40), height=64, width=32).stages) == [64]


def test_the_middle_of_a_picture_of_another_shape_is_taken():
    image = torch.arange(10).expand(1, 4, 10) / 10
    (loaded,) = load_pictures(image, 1, (1, 2))
    torch.testing.assert_close(loaded[0] / 2 + 0.5, image[0, :, 1:9])
    (loaded,) = load_pictures(image.transpose(1, 2), 1, (30, 20))
    assert loaded.shape == (1, 6, 4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"height": 32}, "height is 32 and width None; give both or none"),
        ({"height": 32, "width": 100}, "width=100 is not a multiple of 8, which these stages need; the nearest is 96"),
        ({"height": 0, "width": 32}, "height is 0; expected an integer of at least 1"),
        (
            {"height": 7, "width": 8, "size": 16},
            "height=7 is not a multiple of 2, .*; the nearest is 8",
        ),
    ],
)
def test_a_shape_that_no_stage_can_make_names_the_nearest(pipe, shape, message):
    with pytest.raises(ValueError, match=message):
        sample(pipe, PROMPT, **shape)


def test_both_sides_of_a_picture_must_fill_the_input(pipe):
    """31 x 16 is as wide as the last stage's input of 32 x 16 and a row short of it; 32 x 15 a column."""
    for shape in ((31, 16), (32, 15)):
        assert list(sample(pipe, PROMPT, image=torch.rand(3, *shape), height=64, width=32).stages) == [32, 64]
    assert list(sample(pipe, PROMPT, image=torch.rand(3, 32, 16), height=64, width=32).stages) == [64]


def test_what_a_stage_starts_from_has_whole_pixels_too():
    """From 4 to 32 px a pixel is eight wide, and more than the network's strides divide."""
    pipe = ImagenPipeline(
        sr256_unet=tiny_sr(text_dim=None),
        sr256_scheduler=make_scheduler("ddim", CosineSchedule(), "sample"),
        stages={"sr256": {"size": 32, "lowres_size": 4, "num_inference_steps": 1}},
    )
    pipe.set_progress_bar_config(disable=True)
    start = torch.rand(3, 8, 8)
    with pytest.raises(
        ValueError, match="height=36 is not a multiple of 8, which these stages need; the nearest is 32"
    ):
        sample(pipe, image=start, height=36, width=32)
    with Calls(pipe.sr256_unet) as calls:
        assert sample(pipe, image=start, height=40, width=32).images.shape[-2:] == (40, 32)
    assert calls.samples[0]["lowres"].shape[-2:] == (40, 32)


def test_the_middle_of_a_picture_that_is_too_tall_is_taken():
    image = torch.arange(10)[:, None].expand(1, 10, 4) / 10
    for aspect, rows in (((2, 1), slice(1, 9)), ((1, 1), slice(3, 7))):
        (loaded,) = load_pictures(image, 1, aspect)
        torch.testing.assert_close(loaded / 2 + 0.5, image[:, rows])


def test_a_picture_to_be_painted_into_is_cropped_to_the_shape_too():
    pipe = tiny_pipeline(base_unet=tiny_base(extra_channels={"mask": 4}))
    whole = torch.rand(4, 16, 16)
    whole[3] = (torch.arange(16)[:, None] < 6).float()  # opaque above, to be painted below
    seen = []
    for picture in (whole, whole[:, 4:12]):
        with Calls(pipe.base_unet) as calls:
            sample(pipe, PROMPT, mask=picture, size=16, height=8, width=16, guidance_scale=1)
        seen.append(calls.samples[0]["conditions"]["mask"])
    assert torch.equal(*seen)
    assert torch.equal(seen[0][0, 3], (torch.arange(8)[:, None] >= 2).float().expand(8, 16))


def test_what_a_call_would_run_is_said_for_its_shape(pipe):
    square = torch.rand(3, 32, 32)
    for shape in ({}, {"height": 128, "width": 128}, {"height": 64, "width": 32}):
        assert list(pipe.settings(image=square, **shape)) == list(sample(pipe, PROMPT, image=square, **shape).stages)
    for shape, message in (
        ({"height": 32}, "height is 32 and width None; give both or none"),
        ({"height": 32, "width": 100}, "width=100 is not a multiple of 8"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.settings(**shape)
