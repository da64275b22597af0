"""From decoded pixels to a tensor: cut a square, resize, mirror. Each is a function of what is passed in."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .decode import Picture, Pixels, to_pixels

Square = Literal["center", "random"]
Resize = Literal["area", "bicubic"]


def item_rng(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """Randomness of one sample: a function of (seed, index, stream), all at least 0, and of nothing else."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)).jumped(stream))


def extent(picture: Picture) -> tuple[int, int]:
    """Height and width in pixels."""
    return (picture.height, picture.width) if isinstance(picture, Image.Image) else picture.shape[:2]


def cut_square(picture: Picture, where: float) -> Picture:
    """The largest square of it, at ``where`` in [0, 1) along the longer side; 0.5 is the middle."""
    height, width = extent(picture)
    side = min(height, width)
    if height == width:
        return picture
    left, top = (int(where * (room + 1)) for room in (width - side, height - side))
    if isinstance(picture, Image.Image):
        return picture.crop((left, top, left + side, top + side))
    return picture[top : top + side, left : left + side]


def resize_square(picture: Picture, size: int, kernel: Resize | Literal["box"] = "area") -> Pixels:
    """A square resized to (size, size, C). Float pixels stay float.

    Args:
        kernel: "area": means over the exact area of an output pixel when reducing (so that reducing twice is reducing
            once), bicubic when enlarging; as the cascade resizes (imagen.diffusion.augmentation.resize). "bicubic" and
            "box" are PIL's in both directions; it widens them when reducing, and its box has no shares of pixels.
    """
    side = extent(picture)[0]
    if side == size:
        return to_pixels(picture)
    if kernel == "area" and size < side:
        pixels = to_pixels(picture)
        means = _area(_area(pixels, size).swapaxes(0, 1), size).swapaxes(0, 1)
        return np.rint(means).astype(np.uint8) if pixels.dtype == np.uint8 else means.clip(-1, 1)
    how = Image.Resampling.BOX if kernel == "box" else Image.Resampling.BICUBIC
    if not isinstance(picture, Image.Image) and picture.dtype == np.uint8 and picture.shape[-1] == 3:
        picture = Image.fromarray(picture)
    if isinstance(picture, Image.Image):
        return to_pixels(picture.resize((size, size), how))
    planes = [np.asarray(Image.fromarray(plane).resize((size, size), how)) for plane in np.moveaxis(picture, -1, 0)]
    stacked = np.stack(planes, axis=-1)
    return stacked if picture.dtype == np.uint8 else stacked.clip(-1, 1)  # bicubic overshoots; PIL clips 8 bits itself


def _area(x: Pixels, size: int) -> Pixels:
    """Means over ``size`` equal parts of the first axis, float32; a pixel across a border counts by its shares."""
    length = len(x)
    start = np.arange(size) * length  # of each part, in units of 1 / size of a pixel
    means = np.zeros((size, *x.shape[1:]), np.float32)
    for step in range(-(-length // size) + 1):  # the first pixel of every part, the second, ...
        pixel = start // size + step
        inside = np.minimum(start + length, (pixel + 1) * size) - np.maximum(start, pixel * size)
        share = (inside.clip(0) / length).astype(np.float32)
        if share.any():
            means += x[pixel.clip(max=length - 1)] * share.reshape(-1, *[1] * (x.ndim - 1))
    return means


def nearest_square(picture: Picture, size: int) -> Pixels:
    """A square resized to (size, size, C) without a value that was not there: the pixel in the middle of each area."""
    pixels = to_pixels(picture)
    middle = (2 * np.arange(size) + 1) * len(pixels) // (2 * size)
    return pixels[middle][:, middle]


def cut(pixels: Pixels, left: int, top: int, wide: int, cells: int) -> Pixels:
    """The window of ``wide`` cells whose corner is at (left, top), where ``cells`` cells span the square picture."""
    scale = pixels.shape[0] // cells
    return pixels[top * scale : (top + wide) * scale, left * scale : (left + wide) * scale]


def to_tensor(pixels: Pixels) -> Tensor:
    """(H, W, C), uint8 or float32 in [-1, 1] → (C, H, W) float32 in [-1, 1]."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
    return torch.from_numpy(planes / np.float32(127.5) - np.float32(1) if pixels.dtype == np.uint8 else planes)
