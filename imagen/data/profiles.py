"""Colour profiles: what a file means by its numbers, brought to sRGB, which is what everything here reads."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
DEEP = "colour profile of 16-bit or floating-point pixels left alone"
LEVELS = 6  # of each channel, of the colours that are looked at to see whether a profile changes any


def to_srgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """A picture in the colours that its profile gives it, in sRGB; and what was done, or None where nothing was.

    Args:
        image: as PIL has loaded it; one whose profile says sRGB, or that has none, is returned as it is.

    Returns:
        of mode RGB for CMYK, of palettes RGB or RGBA, else of its own mode. What cannot be read, or belongs to
        another kind of picture, is told and the numbers stay.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return image, None
    if image.mode in ("I;16", "I", "F") or image.mode.startswith("I;"):
        return image, DEEP
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = image.getchannel("A") if "A" in image.getbands() else None
    colours = image.convert(image.mode.removesuffix("A").removesuffix("a")) if alpha is not None else image
    if colours.mode == "1":
        return image, None
    try:
        change = _transform(profile, colours.mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image, "unreadable or unfitting colour profile ignored"
    if change is None:
        return image, None
    made = ImageCms.applyTransform(colours, change)
    assert made is not None
    made = made.getchannel(0) if colours.mode == "L" else made
    if alpha is not None:
        made.putalpha(alpha)
    return made, "colours of its profile made sRGB"


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB, RGB for every mode; None where no colour changes by more than rounding.

    Raises:
        ImageCms.PyCMSError, OSError: no profile, or of another kind of picture.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    change = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", INTENT, flags)
    axis = np.linspace(0, 255, LEVELS if mode == "RGB" else 256).round().astype(np.uint8)
    if mode == "RGB":
        cube = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(1, -1, 3)
    elif mode == "L":
        cube = axis[None]
    else:
        return change
    made = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), change)).astype(int)
    return change if np.abs(made - (cube if mode == "RGB" else cube[..., None])).max() > 1 else None
