"""Stored pictures are reduced by exact area, for every stage alike; the older rule stays what it was."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data.fields import Paired
from imagen.data.prepare import Prepare, Want
from imagen.data.records import Record
from imagen.data.transforms import resize_square

WORDS = ("words",)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise: no filter's result looks like another's."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def prepared(pixels: np.ndarray, size: int, **options):  # type: ignore[no-untyped-def]
    record = Record("a.png", png(pixels), WORDS)
    return Prepare(Want(size, options.pop("lowres_size", None)), **options)("a", record, np.random.default_rng(0))[0]


def shares(old: int, new: int) -> np.ndarray:
    """(new, old): which share of output pixel i input pixel j covers, from the lengths of their overlaps."""
    edges = np.arange(new + 1) * old / new
    overlap = np.minimum(edges[1:, None], np.arange(1, old + 1)) - np.maximum(edges[:-1, None], np.arange(old))
    return overlap.clip(0) * new / old


@pytest.mark.parametrize(("old", "new"), [(64, 16), (65, 64), (157, 16), (7, 5), (127, 64), (30, 1), (50, 20)])
def test_reducing_is_the_mean_over_the_exact_area(old: int, new: int) -> None:
    weights, pixels = shares(old, new), picture(old, old)
    exact = np.einsum("ia,jb,abc->ijc", weights, weights, pixels.astype(np.float64))
    for given in (pixels, Image.fromarray(pixels)):
        made = resize_square(given, new)
        assert made.dtype == np.uint8
        assert np.abs(made - exact).max() <= 0.5 + 1e-3, "rounded more than once"
    made = resize_square((pixels / 127.5 - 1).astype(np.float32), new)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, exact / 127.5 - 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(157, 157), (100, 131), (64, 64), (65, 90), (256, 256)])
def test_the_base_stage_s_target_is_the_next_stage_s_input(height: int, width: int) -> None:
    """Reducing to 64 and then to 16 is reducing to 16, but for the rounding to 8 bits on the way."""
    pixels = picture(height, width)
    base, superres = prepared(pixels, 16), prepared(pixels, 64, lowres_size=16)
    assert (base.image - superres.lowres).abs().max() <= 1.001 / 127.5
    old_base, old_superres = (
        prepared(pixels, 16, resize="bicubic"),
        prepared(pixels, 64, lowres_size=16, resize="bicubic"),
    )
    if height > 64:
        assert (old_base.image - old_superres.lowres).abs().max() > 4 / 127.5


def test_enlarging_is_bicubic_under_both_rules() -> None:
    pixels = picture(20, 20)
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC))
    for kernel in ("area", "bicubic"):
        assert np.array_equal(resize_square(pixels, 32, kernel), expected)  # type: ignore[arg-type]
    assert np.array_equal(resize_square(pixels, 20), pixels)


@pytest.mark.parametrize("side", [20, 64, 157])
def test_the_older_rule_is_pillows_bicubic_and_box(side: int) -> None:
    pixels = picture(side, side)
    large = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
    small = large.resize((16, 16), Image.Resampling.BOX)
    sample = prepared(pixels, 64, lowres_size=16, resize="bicubic")
    for tensor, expected in ((sample.image, large), (sample.lowres, small)):
        levels = ((tensor + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(levels, np.asarray(expected))


def test_a_conditioning_picture_is_reduced_by_the_same_rule() -> None:
    target, pair = picture(60, 60), picture(50, 50, seed=1)
    record = Record("a.png", png(target), WORDS, {"conditioning": png(pair)})
    sample, _ = Prepare(Want(32, fields={"conditioning": Paired(16, 3)}))("a", record, np.random.default_rng(0))
    made = sample.fields["conditioning"]
    assert isinstance(made, torch.Tensor)
    levels = ((made + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(levels - resize_square(pair, 16)).max() < 1e-3


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="resize is 'nearest'; expected one of area, bicubic"):
        Prepare(Want(8), resize="nearest")  # type: ignore[arg-type]
