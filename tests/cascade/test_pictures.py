"""Pictures in and out: what is refused and the nearest that is not, in numbers, shapes and channels."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.cascade.pictures import check_output_type, finish, load_pictures, to_pil


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (0.0, torch.float32, -1.0),
        (1.0, torch.float64, 1.0),
        (0.5, torch.float16, 0.0),
        (-0.0009, torch.float32, -1.0018),
        (1.0009, torch.float32, 1.0018),
        (0, torch.uint8, -1.0),
        (255, torch.uint8, 1.0),
        (255, torch.int64, 1.0),
        (51, torch.int16, -0.6),
    ],
)
def test_numbers_become_minus_one_to_one_in_float32(value: float, dtype: torch.dtype, expected: float) -> None:
    given = torch.full((1, 2, 2), value, dtype=dtype)
    (made,) = load_pictures(given, 1)
    assert made.dtype == torch.float32
    torch.testing.assert_close(
        made, torch.full((1, 2, 2), expected), atol=1e-3 if dtype == torch.float16 else 1e-6, rtol=0
    )


@pytest.mark.parametrize("value", [-0.0011, 1.0011, float("nan"), float("inf"), -float("inf")])
def test_one_number_out_of_range_is_told(value: float) -> None:
    picture = torch.full((1, 2, 2), 0.5)
    picture[0, 1, 1] = value
    with pytest.raises(ValueError, match=r"expected floats in \[0, 1\] or integers in \[0, 255\]"):
        load_pictures([torch.zeros(1, 2, 2), picture], 1)


@pytest.mark.parametrize("value", [-1, 256])
def test_one_integer_out_of_range_is_told(value: int) -> None:
    with pytest.raises(ValueError, match=f"image has integers from {min(value, 0)} to {max(value, 0)}; expected"):
        load_pictures(torch.tensor([[[0, value]]]), 1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(4, 4), "image is a tensor of shape (4, 4); expected (C, H, W) or (B, C, H, W)"),
        (torch.zeros(1, 1, 3, 4, 4), "image is a tensor of shape (1, 1, 3, 4, 4); expected"),
        (np.zeros(4), "image is an array of shape (4,); expected (H, W, C), (H, W) or (B, H, W, C)"),
        (np.zeros((1, 1, 4, 4, 3)), "image is an array of shape (1, 1, 4, 4, 3); expected"),
        (torch.zeros(0, 3, 4, 4), "image has shape (0, 3, 4, 4); this model's pictures have 3 channels"),
        (torch.zeros(3, 0, 4), "image has shape (3, 0, 4)"),
        (torch.zeros(1, 4, 4), "this model's pictures have 3 channels"),
        (np.zeros((3, 4, 4)), "this model's pictures have 3 channels"),
        (np.zeros((4, 4)), "this model's pictures have 3 channels"),
        ([], "image is an empty list; give at least one picture"),
        (b"png", "image is a bytes; expected a PIL image, an array, a tensor or a list of these"),
        ([torch.zeros(3, 2, 2), "a"], "image is a str; expected a PIL image"),
    ],
)
def test_what_is_no_picture_of_the_model_is_told(image: Any, message: str) -> None:
    with pytest.raises(
        ValueError, match=f"^{re.escape(message)}" if message.startswith("image") else re.escape(message)
    ):
        load_pictures(image, 3)


def test_axes_of_arrays_and_tensors_are_their_own() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4), dtype=np.uint8)  # B H W C
    for given in (pixels, list(pixels), torch.from_numpy(pixels).permute(0, 3, 1, 2)):
        made = torch.stack(load_pictures(given, 4, (3, 5)))
        assert torch.equal(made, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)


def test_a_pil_image_holds_one_three_or_four_channels() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    assert load_pictures(image, 4)[0][:, 0, 0].tolist() == [1, -1, -1, 1]
    with pytest.raises(
        ValueError, match="this model's pictures have 2 channels, a PIL image cannot hold them; give a tensor"
    ):
        load_pictures(image, 2)
    for mode in ("F", "I", "I;16"):
        with pytest.raises(ValueError, match=f"image is of mode {mode}, and this model's pictures are RGBA"):
            load_pictures(Image.new(mode, (2, 2)), 4)


def test_an_output_must_hold_the_model_s_channels() -> None:
    for channels in (1, 3, 4):
        check_output_type("pil", channels)
    for kind in ("np", "pt"):
        check_output_type(kind, 2)
    with pytest.raises(ValueError, match="output_type='pil' cannot hold 2 channels; use output_type='np' or 'pt'"):
        check_output_type("pil", 2)
    with pytest.raises(ValueError, match="output_type is 'PIL'; expected one of pil, np, pt"):
        check_output_type("PIL", 3)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pictures_are_rounded_to_the_nearest_level(channels: int, mode: str) -> None:
    levels = np.array([0.0, 0.49 / 255, 0.51 / 255, 254.4 / 255, 254.6 / 255, 1.0])
    pixels = np.broadcast_to(levels[None, None, :, None], (2, 3, 6, channels))
    images = to_pil(pixels)
    assert [(image.mode, image.size) for image in images] == [(mode, (6, 3))] * 2
    assert np.asarray(images[1]).reshape(3, 6, channels)[2, :, -1].tolist() == [0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_comes_out_is_float32_within_the_range_whatever_was_computed_in(dtype: torch.dtype) -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 3.0], dtype=dtype).reshape(1, 1, 2, 3).requires_grad_()
    tensor, array = finish(x, "pt"), finish(x, "np")
    assert tensor.dtype == torch.float32
    assert array.dtype == np.float32
    assert not tensor.requires_grad
    assert tensor.flatten().tolist() == [0, 0, 0.5, 0.75, 1, 1]
    assert array.shape == (1, 2, 3, 1)
    assert np.array_equal(array[..., 0], tensor[:, 0].numpy())
