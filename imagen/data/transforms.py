"""From an image file to a tensor: decode, cut a square, resize. All with PIL, all a function of what is passed in."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Square = Literal["center", "random"]

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def item_rng(seed: int, index: int) -> np.random.Generator:
    """Randomness of one sample: a function of (seed, index), both at least 0, and of nothing else."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))


def read_image(path: Path) -> Image.Image:
    """Decode a file to 8-bit RGB, turned upright by its EXIF orientation.

    Transparent pixels are laid over white, 16-bit greys keep their upper 8 bits, CMYK and palettes are converted, and
    of an animation the first frame is taken.

    Raises:
        ValueError: the file (named in the message) is missing, no image, truncated, or larger than PIL's limit against
            decompression bombs.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except _UNREADABLE as error:
        raise ValueError(
            f"cannot read {path} as an image: {type(error).__name__}: {error}; mend or remove it"
        ) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers; expected 8- or 16-bit integers")
    if image.mode.startswith("I"):  # 16-bit greys: PIL's own conversion would clip them at 255
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def cut_square(image: Image.Image, where: Square, rng: np.random.Generator) -> Image.Image:
    """The largest square of a picture, from its middle or from a random place along the longer side.

    Raises:
        ValueError: ``where`` is neither ``"center"`` nor ``"random"``.
    """
    side = min(image.size)
    spare = (image.width - side, image.height - side)
    if where == "center":
        left, top = spare[0] // 2, spare[1] // 2
    elif where == "random":
        left, top = (int(rng.integers(room + 1)) for room in spare)
    else:
        raise ValueError(f"square is {where!r}; expected 'center' or 'random'")
    return image.crop((left, top, left + side, top + side))


def resize_square(image: Image.Image, size: int) -> Image.Image:
    """Resize a square picture, bicubic; PIL widens the filter when reducing, so nothing aliases."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> Tensor:
    """8-bit RGB → (3, H, W) float32 in [-1, 1]."""
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)
    return torch.from_numpy(pixels / np.float32(127.5) - np.float32(1))
