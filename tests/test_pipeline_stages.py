"""What a stage stores, which stages run, seeds, and pictures in and out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.cascade.pictures import finish, load_pictures
from imagen.cascade.route import per_stage, route
from imagen.cascade.seeds import picture_seeds, stage_generator
from imagen.data.decode import decode
from imagen.stages.spec import StageDefaults, read_stages
from tests.factories import sample, tiny_pipeline

CASCADE = read_stages(None, None)
SR_ONLY = {slot: CASCADE[slot] for slot in ("sr256", "sr1024")}


@pytest.mark.parametrize(
    ("size", "side", "slots"),
    [
        (None, None, ["base", "sr256", "sr1024"]),
        (64, None, ["base"]),
        (256, None, ["base", "sr256"]),
        (None, 20, ["sr256", "sr1024"]),
        (None, 64, ["sr256", "sr1024"]),
        (None, 255, ["sr256", "sr1024"]),
        (None, 256, ["sr1024"]),
        (None, 4000, ["sr1024"]),
        (256, 4000, ["sr256"]),
        (1024, 64, ["sr256", "sr1024"]),
    ],
)
def test_route(size, side, slots):
    assert route(CASCADE, size, side) == slots
    if side is not None:
        assert route(SR_ONLY, size, side) == slots


@pytest.mark.parametrize("size", [None, 256])
def test_a_stage_that_makes_the_size_it_takes_runs_once(size):
    pairs = {"sr256": StageDefaults(size=256, lowres_size=256)}
    assert route(pairs, size, 256) == ["sr256"]


def test_route_says_what_is_missing():
    with pytest.raises(ValueError, match="has no stage"):
        route({})
    with pytest.raises(ValueError, match="no base stage"):
        route(SR_ONLY)
    with pytest.raises(ValueError, match="no super-resolution stage up to size=64"):
        route(CASCADE, 64, 64)
    with pytest.raises(ValueError, match="size=1024: stage sr1024 starts from 256 px"):
        route({slot: CASCADE[slot] for slot in ("base", "sr1024")}, 1024)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("size", 64.0),
        ("lowres_size", 128),
        ("num_inference_steps", 0),
        ("num_inference_steps", True),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("guidance_scale", -0.1),
        ("threshold", "Dynamic"),
        ("threshold_p", 0.0),
        ("threshold_p", 1.1),
        ("threshold_cap", 0.5),
        ("aug_level", -0.1),
        ("lowres_consistency", -1),
        ("lowres_consistency", 4),
        ("aug_space", "latent"),
        ("aug_schedule", {"kund": "cosine"}),
        ("lowres_mode", "lanczos"),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        StageDefaults.from_dict({"size": 64, field: value})


def test_defaults_survive_the_trip_through_a_dict():
    stage = StageDefaults(size=32, lowres_size=8, threshold_cap=1.5, aug_schedule={"kind": "linear"})
    assert StageDefaults.from_dict(stage.to_dict()) == stage


def test_numbers_of_numpy_are_numbers():
    numpy = StageDefaults(
        size=np.int64(32),
        lowres_size=np.uint8(8),
        num_inference_steps=np.int32(4),
        guidance_scale=np.float32(1.5),
        threshold_p=np.float32(0.5),
        threshold_cap=np.int64(2),
        aug_level=np.float32(0.25),
        lowres_consistency=np.int8(4),
    )
    sizes = {"size": 32, "lowres_size": 8, "num_inference_steps": 4, "guidance_scale": 1.5, "lowres_consistency": 4}
    python = StageDefaults(**sizes, threshold_p=0.5, threshold_cap=2.0, aug_level=0.25)
    assert json.dumps(numpy.to_dict()) == json.dumps(python.to_dict())
    pipe = tiny_pipeline()
    same = sample(pipe, "a red circle", size=np.int64(32), num_images_per_prompt=np.int64(2), sr_batch_size=np.int64(1))
    assert torch.equal(
        same.images, sample(pipe, "a red circle", size=32, num_images_per_prompt=2, sr_batch_size=1).images
    )
    with pytest.raises(ValueError, match="size"):
        StageDefaults(size=np.True_)


def test_per_stage():
    running = ["base", "sr256"]
    assert per_stage("x", 3, running, CASCADE) == {"base": 3, "sr256": 3}
    assert per_stage("x", (3, 4), running, CASCADE) == {"base": 3, "sr256": 4}
    assert per_stage("x", [3, 4, 5], ["sr256"], CASCADE) == {"sr256": 4}
    assert per_stage("x", {256: 4, 1024: 5}, running, CASCADE) == {"base": None, "sr256": 4}
    with pytest.raises(ValueError, match=r"x has 4 values; expected one, or 2 \(for 64, 256 px\)"):
        per_stage("x", [1, 2, 3, 4], running, CASCADE)


def test_a_stage_s_scheduler_is_cloned_once_a_call(monkeypatch):
    import imagen.diffusion.loop

    made, original = [], imagen.diffusion.loop.sampling_clone
    monkeypatch.setattr(imagen.diffusion.loop, "sampling_clone", lambda one: made.append(one) or original(one))
    pipe = tiny_pipeline()
    sample(pipe, "a red circle")
    assert made == [pipe.base_scheduler, pipe.sr256_scheduler, pipe.sr1024_scheduler]


def test_seeds_are_prefixes_and_differ():
    def seeds(count):
        return picture_seeds(torch.Generator().manual_seed(1), count)

    assert seeds(5)[:2] == seeds(2)
    assert len(set(seeds(100))) == 100
    assert picture_seeds([torch.Generator().manual_seed(1)], 1) == seeds(1)
    noise = [torch.randn(8, generator=stage_generator(seeds(1)[0], slot)) for slot in ("base", "sr256", "base")]
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])


def test_what_is_offloaded_goes_back_whether_a_call_ends_well_or_not(monkeypatch):
    """The hooks are called for once a call, after its last step; and between calls nothing runs."""
    pipe, freed, steps = tiny_pipeline(), [], []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(len(steps)))

    def fail(*_):
        raise RuntimeError("a callback's own")

    sample(pipe, "a red circle", size=32, callback_on_step_end=lambda *_: steps.append(pipe.stage))
    assert freed == [len(steps)]
    assert set(steps) == {"base", "sr256"}
    with pytest.raises(RuntimeError, match="a callback's own"):
        sample(pipe, "a red circle", callback_on_step_end=fail)
    assert len(freed) == 2
    assert pipe.stage is pipe.num_timesteps is pipe.guidance_scale is None


def test_one_picture_in_every_form():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = tensor.float() / 127.5 - 1
    forms = [Image.fromarray(pixels), pixels, pixels / 255.0, tensor, tensor / 255, pixels[None], tensor[None]]
    for form in forms:
        (loaded,) = load_pictures(form, 3)
        torch.testing.assert_close(loaded, expected, atol=1e-6, rtol=0)
    assert len(load_pictures([forms[0], forms[6], forms[1]], 3)) == 3
    assert load_pictures(pixels[..., 0], 1)[0].shape == (1, 6, 6)
    assert load_pictures(Image.fromarray(pixels), 1)[0].shape == (1, 6, 6)
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    (deep,) = load_pictures(Image.fromarray(levels), 1)
    assert np.array_equal(((deep[0].double() + 1) * 32767.5).round().numpy(), levels), "16 bits keep every level"


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("F", 1)])
def test_a_picture_that_lies_on_its_side_is_turned_upright(mode, channels):
    """EXIF's orientation 6: a quarter clockwise."""
    levels = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)
    picture = Image.fromarray(levels).convert(mode)
    if mode == "F":
        picture = Image.fromarray(levels.astype(np.float32) / 255)
    picture.getexif()[0x0112] = 6
    expected = torch.from_numpy(np.rot90(levels, 3) / 127.5 - 1).float()
    torch.testing.assert_close(load_pictures(picture, channels, (3, 2))[0][0], expected, atol=1e-5, rtol=0)


def test_ranges_of_numbers_that_are_not_bytes():
    levels = np.array([[0, 255, 65535]], np.uint16)
    expected = torch.tensor([[[-1, 255 / 32767.5 - 1, 1]]], dtype=torch.float32)
    torch.testing.assert_close(load_pictures(levels, 1, (1, 3))[0], expected)
    torch.testing.assert_close(load_pictures(levels > 300, 1, (1, 3))[0], torch.tensor([[[-1.0, -1, 1]]]))
    floats = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    torch.testing.assert_close(load_pictures(floats, 3, (1, 3))[0], torch.tensor([-1.0, 0, 1]).expand(3, 1, 3))
    for wrong, message in [
        (np.array([[0, 256]]), "integers from 0 to 256"),
        (np.array([[-1, 5]]), "integers from -1 to 5"),
        (np.array([[1j]]), "complex"),
        (Image.fromarray(np.array([[0, 300]], np.float32)), "values from 0 to 300"),
        (Image.fromarray(np.array([[0, 65536]], np.int32)), r"32-bit pixels lie in \[0, 65536\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_pictures(wrong, 1)
    with pytest.raises(ValueError, match="mode I;16, and this model's pictures are RGBA"):
        load_pictures(Image.fromarray(levels), 4)


def test_transparency_is_laid_over_white_as_in_training():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 0] = 255  # red that is hidden
    pixels[0, 0, 3] = 255
    logo = Image.fromarray(pixels)
    for form in (logo, logo.convert("LA").convert("RGBA"), logo.quantize(3)):
        loaded = load_pictures(form, 3)[0]
        assert loaded[:, 1, 1].tolist() == [1, 1, 1]
        assert loaded[1, 0, 0] < 0, "what is not transparent stays"
        torch.testing.assert_close(loaded, torch.tensor(decode(form, "", 3).pixels).permute(2, 0, 1) / 127.5 - 1)
    assert torch.equal(load_pictures(logo, 4)[0], torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1)


def test_the_centre_of_a_picture_that_is_not_square():
    (loaded,) = load_pictures(torch.arange(10).expand(1, 4, 10) / 10, 1)
    torch.testing.assert_close(loaded[0, 0] / 2 + 0.5, torch.tensor([0.3, 0.4, 0.5, 0.6]))


def test_pictures_come_out_as_they_went_in():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    x = torch.stack(load_pictures(pixels, 3))
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in finish(x, "pil")]), pixels)
    assert finish(x * 3, "pt").aminmax() == (0, 1)
