"""The resizing of the FID and of clean-fid: as their own code's, closed forms, and torch's antialiasing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from imagen.scores.resize import RESIZES, SIDE, resize_clean, resize_tf1, resized
from tests.scores.drawn import GRID, SIZES, drawn_pictures

GOLDENS = np.load(Path(__file__).parent / "goldens" / "inception.npz")


def seen(levels: np.ndarray, resize: str) -> np.ndarray:
    """(299, 299, 3) of (H, W, 3)."""
    found = resized(Image.fromarray(levels), resize)
    assert found.shape == (1, 3, SIDE, SIDE)
    assert found.dtype == torch.float32
    return found[0].movedim(0, -1).numpy()


@pytest.mark.parametrize("at", range(len(SIZES)), ids=str)
@pytest.mark.parametrize("resize", RESIZES)
def test_pictures_are_resized_as_by_torch_fidelity_and_by_clean_fid(resize: str, at: int) -> None:
    found = seen(drawn_pictures()[at], resize)[np.ix_(GRID, GRID)]
    assert np.abs(found - GOLDENS[resize][at]).max() < 255 * 1e-6


@pytest.mark.parametrize("resize", RESIZES)
def test_a_picture_of_the_size_is_left_alone_and_a_flat_one_stays_flat(resize: str) -> None:
    levels = drawn_pictures()[SIZES.index((SIDE, SIDE))]
    assert np.array_equal(seen(levels, resize), levels.astype(np.float32))
    assert np.abs(seen(np.full((40, 500, 3), 77, np.uint8), resize) - 77).max() < 1e-4


def test_tf1_puts_pixel_i_at_i_times_size_over_299() -> None:
    """Of a ramp of 13 columns, 20 levels each: 20 i 13 / 299, until the last column, which goes on."""
    ramp = (20.0 * torch.arange(13, dtype=torch.float64)).expand(1, 1, 5, 13)
    expected = np.minimum(20 * np.arange(SIDE) * 13 / SIDE, 240)
    found = resize_tf1(ramp).numpy()
    assert found.shape == (1, 1, SIDE, SIDE)
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(resize_tf1(ramp.mT).numpy() - expected[:, None]).max() < 1e-4


def test_clean_averages_what_tf1_skips() -> None:
    """Columns 0, 255, 0, 255, ... of 598: TensorFlow's graph sees the even ones alone."""
    stripes = np.zeros((30, 598, 3), np.uint8)
    stripes[:, 1::2] = 255
    assert not seen(stripes, "tf1").any()
    assert np.abs(seen(stripes, "clean")[:, 5:-5] - 127.5).max() < 1


@pytest.mark.parametrize("size", [(400, 700), (1024, 320)], ids=str)
def test_clean_is_torch_s_antialiased_bicubic(size: tuple[int, int]) -> None:
    levels = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    batch = torch.from_numpy(levels).movedim(-1, 0)[None].double()
    other = F.interpolate(batch, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
    found = resize_clean(Image.fromarray(levels))
    assert np.abs(found - other[0].movedim(0, -1).numpy().clip(0, 255)).max() < 1e-3


def test_clean_is_not_rounded_and_stays_in_range() -> None:
    edges = np.zeros((60, 60, 3), np.uint8)
    edges[20:40, 20:40] = 255  # bicubic overshoots on both sides
    found = resize_clean(Image.fromarray(edges))
    assert found.dtype == np.float32
    assert found.min() == 0
    assert found.max() == 255
    assert (found != found.round()).any()


@pytest.mark.parametrize("resize", RESIZES)
def test_grey_pictures_are_seen_in_three_equal_channels(resize: str) -> None:
    grey = Image.fromarray(drawn_pictures()[1]).convert("L")
    found = resized(grey, resize)
    assert torch.equal(found[:, 0], found[:, 2])
    assert torch.equal(found, resized(grey.convert("RGB"), resize))
