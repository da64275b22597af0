"""The older rule of reducing stored pictures, Pillow's kernels, shown by noise: a ramp has the same means by any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data.fields import Paired
from imagen.data.prepare import Prepare, Want
from imagen.data.records import Record
from imagen.data.transforms import resize_square

KERNELS = {"bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def as_float(pixels: np.ndarray) -> np.ndarray:
    return (pixels / np.float32(127.5) - np.float32(1)).astype(np.float32)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("side", "size"), [(24, 8), (24, 9), (8, 12)])
@pytest.mark.parametrize("kind", ["pil", "rgb", "grey", "five", "float"])
def test_every_kind_of_pixels_is_resized_as_pillow_resizes_its_planes(
    kind: str, side: int, size: int, kernel: str
) -> None:
    pixels = noise(side, side, {"grey": 1, "five": 5}.get(kind, 3))
    given: Any = as_float(pixels) if kind == "float" else Image.fromarray(pixels) if kind == "pil" else pixels
    made = resize_square(given, size, kernel)
    planes = np.moveaxis(as_float(pixels) if kind == "float" else pixels, -1, 0)
    expected = np.stack(
        [np.asarray(Image.fromarray(plane).resize((size, size), KERNELS[kernel])) for plane in planes], axis=-1
    )
    if kind == "float":
        expected = expected.clip(-1, 1)
    assert made.dtype == expected.dtype
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("where", ["center", "random"])
def test_the_picture_is_bicubic_and_its_small_copy_the_mean_over_areas(where: str) -> None:
    stored = noise(48, 72, 3)  # not square
    prepare = Prepare(Want(24, lowres_size=6), square=where, resize="bicubic")  # type: ignore[arg-type]
    sample, _ = prepare("a", Record("", stored, ("a star",)), np.random.default_rng(5))
    left = 12 if where == "center" else int(np.random.default_rng(5).random() * 25)
    square = stored[:, left : left + 48]
    expected = np.asarray(Image.fromarray(square).resize((24, 24), Image.Resampling.BICUBIC))
    assert torch.equal(sample.image, torch.from_numpy(as_float(expected)).permute(2, 0, 1))
    assert sample.lowres is not None
    means = sample.image.reshape(3, 6, 4, 6, 4).mean((2, 4))
    assert (sample.lowres - means).abs().max() <= 1.5 / 127.5  # two roundings to bytes
    bicubic = np.asarray(Image.fromarray(expected).resize((6, 6), Image.Resampling.BICUBIC))
    assert np.abs(as_float(bicubic) - means.permute(1, 2, 0).numpy()).max() > 5 / 127.5, "noise tells the kernels apart"


def test_a_conditioning_picture_is_reduced_by_areas_over_the_same_square() -> None:
    stored, pair = noise(48, 72, 3), noise(24, 36, 3)[::-1].copy()
    record = Record("", stored, ("a star",), fields={"conditioning": pair})
    sample, notes = Prepare(Want(24, fields={"conditioning": Paired(6, 3)}), square="random", resize="bicubic")(
        "a", record, np.random.default_rng(5)
    )
    left = int(np.random.default_rng(5).random() * 13)
    square = torch.from_numpy(as_float(pair[:, left : left + 24])).permute(2, 0, 1)
    made = sample.fields["conditioning"]
    assert isinstance(made, torch.Tensor)
    assert (made - square.reshape(3, 6, 4, 6, 4).mean((2, 4))).abs().max() <= 1.5 / 127.5
    assert not notes


def test_windows_of_picture_and_small_copy_lie_on_the_same_pixels() -> None:
    stored = noise(32, 32, 3)
    prepare = Prepare(Want(32, lowres_size=8), crop=16, flip=True)
    tops: set[tuple[int, int, bool]] = set()
    whole = torch.from_numpy(as_float(stored)).permute(2, 0, 1)
    for seed in range(40):
        sample, _ = prepare("a", Record("", stored, ("a star",)), np.random.default_rng(seed))
        assert sample.lowres is not None
        assert (sample.image.reshape(3, 4, 4, 4, 4).mean((2, 4)) - sample.lowres).abs().max() <= 1.5 / 127.5
        for mirrored in (False, True):
            picture = whole.flip(-1) if mirrored else whole
            for top in range(0, 17, 4):
                for left in range(0, 17, 4):
                    if torch.equal(picture[:, top : top + 16, left : left + 16], sample.image):
                        tops.add((top, left, mirrored))
    assert len({mirrored for *_, mirrored in tops}) == 2
    assert {top for top, *_ in tops} == {left for _, left, _ in tops} == {0, 4, 8, 12, 16}
    assert len(tops) > 20, "top and left are drawn apart, and every window is one of the picture's"


def test_half_of_the_pictures_are_mirrored() -> None:
    prepare, record = Prepare(Want(2), flip=True), Record("", noise(2, 2, 3), ("a star",))
    plain = Prepare(Want(2))("a", record, np.random.default_rng(0))[0].image
    made = [prepare("a", record, np.random.default_rng(seed))[0].image for seed in range(1000)]
    assert all(torch.equal(image, plain) or torch.equal(image, plain.flip(-1)) for image in made)
    assert abs(sum(torch.equal(image, plain) for image in made) - 500) < 4 * 250**0.5
