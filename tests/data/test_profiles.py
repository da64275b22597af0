"""Colour profiles against the formula of the profile itself."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from imagen.data.profiles import to_srgb

D50 = (0.9642, 1.0, 0.8249)
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))  # columns, at D50
DISPLAY_P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def profile(primaries: tuple[tuple[float, float, float], ...] | None, gamma: float | None = None) -> bytes:
    """An ICC profile of version 2 (4 with the curve of sRGB): of three primaries, or grey."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"para\0\0\0\0\0\3\0\0" + fixed(*CURVE)
    if gamma is not None:
        curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), b"desc": b"desc\0\0\0\0\0\0\0\2x\0" + bytes(80)}
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        for letter, column in zip(b"rgb", primaries, strict=True):
            tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*column)
            tags[bytes([letter]) + b"TRC"] = curve
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += padded
    size = start + len(body)
    space = b"GRAY" if primaries is None else b"RGB "
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x04000000, b"mntr", space, b"XYZ ") + bytes(12)
    head += b"acsp" + bytes(28) + fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


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
