"""The two ways in which pictures are brought to the 299 pixels that the Inception of the FID sees.

The FID of Heusel et al. 2017 (arXiv:1706.08500) resizes inside TensorFlow 1's graph, and so do ADM's evaluation suite
and torch-fidelity: bilinear between the two nearest pixels, without half-pixel centres, and without antialiasing.
Parmar et al. 2022 (arXiv:2104.11222, clean-fid) show how much of a score that can be, and resize by PIL, bicubic with
antialiasing, without rounding to whole levels. Numbers of the two are not to be compared.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 299
RESIZES = ("tf1", "clean")


def resized(picture: Image.Image, resize: str) -> Tensor:
    """A picture of any size -> (1, 3, 299, 299) float32 in [0, 255].

    Args:
        resize: "tf1" (:func:`resize_tf1`) or "clean" (:func:`resize_clean`).
    """
    if resize == "clean":
        return torch.from_numpy(resize_clean(picture)).movedim(-1, 0)[None]
    levels = torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0)[None]
    return resize_tf1(levels.float())


def resize_clean(picture: Image.Image, side: int = SIDE) -> np.ndarray:
    """clean-fid's resizing: every channel in floating point by PIL's bicubic filter, which antialiases.

    Returns:
        (side, side, 3) float32 in [0, 255], not rounded.
    """
    channels = [
        np.asarray(channel.convert("F").resize((side, side), Image.Resampling.BICUBIC))
        for channel in picture.convert("RGB").split()
    ]
    return np.stack(channels, axis=-1).clip(0, 255)


def resize_tf1(pictures: Tensor, side: int = SIDE) -> Tensor:
    """TensorFlow 1's ``resize_bilinear(align_corners=False)``: output pixel i lies at i * size / side of the input.

    The position is kept in float32, as TensorFlow does, and past the last pixel that pixel goes on.

    Args:
        pictures: (B, C, H, W), floating point.

    Returns:
        (B, C, side, side), the same dtype.
    """
    rows = _between(pictures, 2, side)
    return _between(rows, 3, side)


def _between(pictures: Tensor, axis: int, side: int) -> Tensor:
    """Linear interpolation along one axis of a batch."""
    size = pictures.shape[axis]
    scale = torch.tensor(size / side, dtype=torch.float32, device=pictures.device)
    position = torch.arange(side, dtype=torch.float32, device=pictures.device) * scale
    low = position.long()
    share = (position - low).to(pictures.dtype).reshape([-1 if at == axis else 1 for at in range(pictures.ndim)])
    below = pictures.index_select(axis, low)
    above = pictures.index_select(axis, (low + 1).clamp(max=size - 1))
    return below + (above - below) * share
