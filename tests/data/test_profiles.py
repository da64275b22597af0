"""Colour profiles against the formula of the profile itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from imagen.cascade.pictures import load_pictures
from imagen.conditions.options import picture
from imagen.data.decode import decode
from imagen.data.fields import Paired
from imagen.data.profiles import to_srgb
from tests.data.icc import CURVE, DISPLAY_P3, SRGB, profile


def with_profile(pixels: object, mode: str, icc: bytes) -> Image.Image:
    image = Image.fromarray(np.array(pixels, np.uint8), mode)
    image.info["icc_profile"] = icc
    return image


def expected(pixels: np.ndarray) -> np.ndarray:
    """Display P3 -> sRGB by their matrices, and the curve that both have."""
    x = pixels / 255
    linear = np.where(x <= CURVE[4], x * CURVE[3], (x * CURVE[1] + CURVE[2]) ** CURVE[0])
    made = (linear @ np.array(DISPLAY_P3) @ np.linalg.inv(np.array(SRGB))).clip(0, 1)
    return 255 * np.where(made <= 0.0031308, made * 12.92, 1.055 * made ** (1 / 2.4) - 0.055)


def test_display_p3_becomes_srgb() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    pixels[0, 0] = 60, 200, 80
    made, told = to_srgb(with_profile(pixels, "RGB", profile(DISPLAY_P3)))
    assert told == "colours of its profile made sRGB"
    assert np.abs(np.asarray(made) - expected(pixels)).max() <= 2
    assert np.abs(np.asarray(made)[0, 0] - np.array([0, 203, 58], np.int64)).max() <= 1


def test_alpha_and_palettes() -> None:
    colour, alpha = np.full((2, 2, 3), (60, 200, 80)), np.array([[0, 90], [200, 255]])
    image = with_profile(np.dstack([colour, alpha]), "RGBA", profile(DISPLAY_P3))
    made, told = to_srgb(image)
    assert told
    assert made.mode == "RGBA"
    assert (np.asarray(made)[..., 3] == alpha).all()
    assert np.abs(np.asarray(made)[..., :3].astype(int) - (0, 203, 58)).max() <= 1
    palette = with_profile(colour, "RGB", profile(DISPLAY_P3)).quantize(4)
    palette.info["icc_profile"] = profile(DISPLAY_P3)
    made, _ = to_srgb(palette)
    assert np.abs(np.asarray(made).astype(int) - (0, 203, 58)).max() <= 1


def test_grey_by_its_gamma() -> None:
    ramp = np.arange(0, 256, 5, np.uint8)[None]
    made, told = to_srgb(with_profile(ramp, "L", profile(None, gamma=1.75)))
    linear = (ramp / 255) ** 1.75
    wanted = 255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert told
    assert made.mode == "L"
    assert np.abs(np.asarray(made) - wanted).max() <= 2


@pytest.mark.parametrize(
    "icc", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), profile(SRGB), b""]
)
def test_srgb_is_left_alone(icc: bytes) -> None:
    image = with_profile(np.random.default_rng(0).integers(0, 256, (8, 8, 3)), "RGB", icc)
    made, told = to_srgb(image)
    assert made is image
    assert told is None


@pytest.mark.parametrize(
    ("mode", "icc"), [("RGB", b"not a profile"), ("RGB", profile(None, gamma=2.2)), ("L", profile(DISPLAY_P3))]
)
def test_a_broken_profile_and_another_picture_s_are_told(mode: str, icc: bytes) -> None:
    image = with_profile(np.full((4, 4, 3) if mode == "RGB" else (4, 4), 77), mode, icc)
    made, told = to_srgb(image)
    assert made is image
    assert told == "unreadable or unfitting colour profile ignored"


def test_deep_pixels_keep_their_bits() -> None:
    image = Image.fromarray(np.array([[1, 40_000]], np.uint16))
    image.info["icc_profile"] = profile(None, gamma=1.0)
    made, told = to_srgb(image)
    assert made is image
    assert told == "colour profile of 16-bit or floating-point pixels left alone"


def test_wherever_a_picture_comes_in(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (60, 200, 80))
    path = tmp_path / "fern.png"
    image.save(path, icc_profile=profile(DISPLAY_P3))
    wanted = np.array([0, 203, 58])
    decoded = decode(path, path.name)
    assert np.abs(decoded.pixels[0, 0] - wanted).max() <= 1
    assert decoded.repairs == ("colours of its profile made sRGB",)
    plain = decode(path, path.name, profiles=False)
    assert (plain.pixels[0, 0] == (60, 200, 80)).all()
    assert not plain.repairs
    paired, as_stored = Paired(16), (Paired(16, 3, "nearest"), Paired(16, 3, binary=True))
    assert np.abs(paired.decode(path, "cond").pixels[0, 0] - wanted).max() <= 1
    assert (paired.decode(path, "cond", profiles=False).pixels[0, 0] == (60, 200, 80)).all()
    assert not any(kind.decode(path, "cond").repairs for kind in as_stored)
    given = picture("--image", str(path))
    for channels in (3, 4):
        (called,) = load_pictures(given, channels)
        assert np.abs((called[:3, 0, 0].numpy() + 1) * 127.5 - wanted).max() <= 1.01


def test_turned_upright_it_keeps_its_profile(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (4, 8), (60, 200, 80)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", quality=100, subsampling=0, icc_profile=profile(DISPLAY_P3), exif=exif)
    decoded = decode(tmp_path / "a.jpg", "a.jpg")
    assert decoded.pixels.shape == (4, 8, 3)
    assert np.abs(decoded.pixels[0, 0] - np.array([0, 203, 58])).max() <= 3
    assert decoded.repairs == ("turned upright by its EXIF orientation", "colours of its profile made sRGB")
