"""Weights, pictures and features that are drawn alike wherever numpy is: here, and where other projects' code runs.

``RandomState``'s streams are promised never to change. Nothing but numpy is imported, so that
benchmarks/other_scores.py can read this file where this project is not installed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

SIZES = ((32, 32), (64, 64), (48, 80), (256, 256), (299, 299), (400, 400))
"""Of the pictures, (height, width): below, at and above what the Inception sees, and one that is not square."""
GRID = np.linspace(0, 298, 14).round().astype(int)
"""Rows and columns of a resized picture that are kept, the first and the last among them."""
SETS = {"few": (40, 40, 12), "many": (300, 300, 24), "flat": (30, 30, 50)}
"""Of features: (rows, rows of the other set, dimensions). "flat" has fewer rows than dimensions."""
NEIGHBOURS = (1, 3, 5)


def drawn_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """A network's weights by their names and shapes, such that activations keep their size."""
    return {
        key: _weights(key, tuple(shape)) for key, shape in shapes.items() if not key.endswith("num_batches_tracked")
    }


def drawn_pictures() -> list[NDArray[np.uint8]]:
    """Coloured cells of other sizes with noise on them, (H, W, 3), one for each of `SIZES`."""
    pictures = []
    for seed, (height, width) in enumerate(SIZES):
        random, cell = np.random.RandomState(seed), 2 + 5 * seed
        cells = random.randint(0, 256, (height // cell + 1, width // cell + 1, 3))
        wide = cells.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
        pictures.append((wide + random.randint(-40, 41, wide.shape)).clip(0, 255).astype(np.uint8))
    return pictures


def drawn_features(kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two sets of features with correlated columns: of real pictures, and of generated ones that lie beside them."""
    rows, others, dim = SETS[kind]
    random = np.random.RandomState(len(kind) + dim)
    mix = random.standard_normal((dim, dim)) / dim**0.5
    real = random.standard_normal((rows, dim)) @ mix
    return real, random.standard_normal((others, dim)) @ (mix + 0.1 * np.eye(dim)) * 0.8 + 0.1


def _weights(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith(("bn.weight", "running_var")):
        values = random.uniform(0.8, 1.2, shape)
    elif len(shape) == 1:
        values = random.normal(0, 0.1, shape)
    else:
        values = random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
    return values.astype(np.float32)
