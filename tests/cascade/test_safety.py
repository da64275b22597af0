"""The watermark lies where diffusers puts it on a picture of that size, on every picture that has room for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker

from imagen.cascade.pictures import finish


def marked(height: int, width: int, side: int) -> np.ndarray:
    """(H, W) bool: the pixels of a grey picture that the mark, a white square, changed."""
    watermarker = IFWatermarker()
    watermarker.watermark_image.fill_(255)
    x = torch.zeros(2, 3, height, width)
    pictures = finish(x, "pil", side, watermarker=watermarker)
    plain = finish(x, "pil", side)
    masks = [(np.asarray(a) != np.asarray(b)).any(axis=-1) for a, b in zip(pictures, plain, strict=True)]
    assert np.array_equal(*masks)
    return masks[0]


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [
        *[(48, 80, 64), (80, 48, 64), (64, 64, 64), (32, 64, 64), (64, 128, 64), (256, 192, 256), (13, 21, 64)],
        *[(100, 160, 64), (640, 1280, 1024), (1024, 1024, 1024)],
    ],
)
def test_every_picture_with_room_for_the_mark_has_it_whole_in_its_corner(height: int, width: int, side: int) -> None:
    scale = math.sqrt(height * width) / 1024
    mark, gap = int(62 * scale), int(14 * scale)
    expected = np.zeros((height, width), bool)
    expected[height - gap - mark : height - gap, width - gap - mark : width - gap] = True
    assert mark >= 1
    assert np.array_equal(marked(height, width, side), expected)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 17), (8, 8), (1, 1)])
def test_a_picture_without_room_for_a_pixel_of_the_mark_leaves_as_it_is(height: int, width: int) -> None:
    for side in (16, 64, 1024):
        assert not marked(height, width, side).any()
