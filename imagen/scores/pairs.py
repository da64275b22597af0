"""Scores of pairs of pictures, each beside what it should be: any number of channels, in their own units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagen.scores.sets import Array

Mask = NDArray[np.bool_]
SIGMA, RADIUS = 1.5, 5  # of the Gaussian window, in pixels: 11 x 11
C1, C2 = 0.01**2, 0.03**2


def psnr(x: Any, y: Any, data_range: Any, mask: Any = None) -> float:
    """The peak signal-to-noise ratio of x (C, H, W) beside y, in dB: 10 log10(data_range^2 / mean squared error).

    Infinite where they are equal. The sums are in float64.

    Args:
        data_range: the largest difference that values of the data can have, such as 1 for [0, 1], in the units of x and
            y: a number, or one for each channel (C,) where their units differ.
        mask: (H, W) or (C, H, W), bool: only pixels inside count, and those outside may be NaN.

    Raises:
        ValueError: other shapes, values inside that are not finite, an empty mask, or a ``data_range`` not above 0.
    """
    first, second, inside = _checked(x, y, mask)
    error = float((((first - second) / _ranges(data_range, len(first))) ** 2)[inside].mean())
    return -10 * math.log10(error) if error else math.inf


def mae(x: Any, y: Any, mask: Any = None) -> float:
    """The mean absolute error of x (C, H, W) beside y, in their units; ``mask`` as in `psnr`. Raises: as `psnr`."""
    first, second, inside = _checked(x, y, mask)
    return float(np.abs(first - second)[inside].mean())


def ssim(x: Any, y: Any, data_range: Any, mask: Any = None) -> float:
    """The structural similarity of x (C, H, W) and y, at most 1 (Wang et al. 2004, eq. 13).

    The mean, over channels and pixels, of what is local to a Gaussian window of 11 x 11 pixels, sigma 1.5; K1 = 0.01,
    K2 = 0.03. Pictures are mirrored at their edges, without repeating the edge. With a mask, a window's means and
    variances are of its pixels inside alone, weighted anew, and the mean is over pixels inside: nothing outside is
    looked at.

    Args:
        data_range: as in `psnr`.
        mask: as in `psnr`.

    Raises:
        ValueError: as `psnr`.
    """
    from scipy.ndimage import gaussian_filter

    def smooth(values: Array) -> Array:
        return np.asarray(gaussian_filter(values, SIGMA, mode="mirror", radius=RADIUS, axes=(1, 2)))

    first, second, inside = _checked(x, y, mask)
    weights = np.where(inside, smooth(inside.astype(np.float64)), 1.0)  # outside any will do
    ranges = _ranges(data_range, len(first))
    c1, c2 = C1 * ranges**2, C2 * ranges**2
    mean_x, mean_y = smooth(first) / weights, smooth(second) / weights
    var_x = (smooth(first * first) / weights - mean_x**2).clip(min=0.0)
    var_y = (smooth(second * second) / weights - mean_y**2).clip(min=0.0)
    cov = smooth(first * second) / weights - mean_x * mean_y
    local = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(local[inside].mean())


def pair_scores(
    xs: Iterable[Any], ys: Iterable[Any], data_range: Any, masks: Iterable[Any] | None = None
) -> dict[str, Array]:
    """``psnr``, ``ssim`` and ``mae`` of each of N pairs, by name: (N,) each, in the order of the pairs.

    Args:
        xs: pictures (C, H, W), of any sizes.
        ys: what they should be, one for each.
        data_range: as in `psnr`, of all pairs.
        masks: one for each pair, as in `psnr`; None counts every pixel.

    Raises:
        ValueError: as `psnr`, with the number of the pair in front; other numbers of xs, ys and masks, or none.
    """
    first, second = list(xs), list(ys)
    third = [None] * len(first) if masks is None else list(masks)
    if not len(first) == len(second) == len(third) or not first:
        raise ValueError(
            f"{len(first)} pictures, {len(second)} beside them, {len(third)} masks; expected as many of each"
        )
    rows = []
    for number, (x, y, mask) in enumerate(zip(first, second, third, strict=True)):
        try:
            rows.append((psnr(x, y, data_range, mask), ssim(x, y, data_range, mask), mae(x, y, mask)))
        except ValueError as error:
            raise ValueError(f"pair {number}: {error}") from error
    return dict(zip(("psnr", "ssim", "mae"), np.array(rows).T, strict=True))


def _checked(x: Any, y: Any, mask: Any) -> tuple[Array, Array, Mask]:
    """Both pictures in float64, 0 outside the mask, and the mask (C, H, W)."""
    first, second = np.asarray(x), np.asarray(y)
    numbers = first.dtype.kind in "fiu" and second.dtype.kind in "fiu"
    if first.shape != second.shape or first.ndim != 3 or not first.size or not numbers:
        given = f"{first.dtype} {first.shape} and {second.dtype} {second.shape}"
        raise ValueError(f"pictures are {given}; expected numbers (C, H, W), two of one shape")
    inside = np.ones(first.shape, dtype=bool) if mask is None else np.asarray(mask)
    if inside.dtype != np.bool_ or inside.shape not in (first.shape, first.shape[1:]) or not inside.any():
        given = f"{inside.dtype} {inside.shape}, {np.count_nonzero(inside)} pixels inside"
        raise ValueError(f"the mask is {given}; expected bool (H, W) or (C, H, W) of pictures {first.shape}, not empty")
    inside = np.broadcast_to(inside, first.shape)
    if not (np.isfinite(first[inside]).all() and np.isfinite(second[inside]).all()):
        raise ValueError("pictures hold values that are not finite; leave their pixels out by a mask")
    return np.where(inside, first, 0).astype(np.float64), np.where(inside, second, 0).astype(np.float64), inside


def _ranges(data_range: Any, channels: int) -> Array:
    """One for each channel, (C, 1, 1)."""
    ranges = np.asarray(data_range, dtype=np.float64)
    if ranges.shape not in ((), (channels,)) or not (np.isfinite(ranges) & (ranges > 0)).all():
        raise ValueError(
            f"data_range is {data_range!r}; expected a number above 0, or one for each of {channels} channels"
        )
    return np.broadcast_to(ranges, (channels,))[:, None, None]
