"""How far two sets of pictures are apart, made by two ways from the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CELLS = 8  # a side: what features are averaged over
Array = NDArray[np.float64]


def layout(pictures: Sequence[Image.Image]) -> Array:
    """Mean colours of 8 x 8 cells, in [0, 1]: (N, 192). What stands where, and in which colours."""
    return np.stack([_cells(_floats(picture)) for picture in pictures])


def detail(pictures: Sequence[Image.Image]) -> Array:
    """How much of the finest detail 8 x 8 cells hold, the mean size of the discrete Laplacian: (N, 192).

    Blur lowers it; noise that was left in raises it.
    """
    from scipy.ndimage import laplace

    return np.stack([_cells(np.abs(laplace(_floats(picture), axes=(0, 1)))) for picture in pictures])


@dataclass(frozen=True)
class Distance:
    """A squared energy distance and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{1000 * self.value:+.2f} ({1000 * self.error:.2f})"

    def to_json(self) -> dict[str, float]:
        """Both numbers."""
        return {"value": self.value, "error": self.error}


def energy_distance(x: Array, y: Array) -> Distance:
    """The squared energy distance of two sets of features (N, D), of which rows i belong to the same prompt.

    2 E|x - y'| - E|x - x'| - E|y - y'| over pairs of different prompts (Szekely & Rizzo 2013): 0 in the mean for two
    draws of one distribution, however few, so it may be negative. The error is the jackknife's over prompts.

    Raises:
        ValueError: fewer than three prompts, or sets of other sizes.
    """
    from scipy.spatial.distance import cdist

    if x.shape != y.shape or len(x) < 3:
        raise ValueError(f"features are {x.shape} and {y.shape}; expected as many of each, of at least three prompts")
    count = len(x)
    kernel = cdist(x, y) + cdist(y, x) - cdist(x, x) - cdist(y, y)
    np.fill_diagonal(kernel, 0.0)
    total = kernel.sum()
    without = (total - 2 * kernel.sum(axis=1)) / ((count - 1) * (count - 2))
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    return Distance(float(total / (count * (count - 1))), float(error))


def _floats(picture: Image.Image) -> Array:
    return np.asarray(picture.convert("RGB"), dtype=np.float64) / 255


def _cells(values: Array) -> Array:
    """(H, W, C) -> the means of its 8 x 8 cells, in a row."""
    height, width, channels = values.shape
    return values.reshape(CELLS, height // CELLS, CELLS, width // CELLS, channels).mean(axis=(1, 3)).reshape(-1)
