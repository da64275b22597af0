"""Resampling, and the noise-conditioning augmentation of the super-resolution stages (paper, section 2.4).

The cascade resizes pictures with :func:`resize`; the low-resolution copies that stages are trained on come from the
same kernel, and so do stored pictures brought to a stage's size (imagen.data, in numpy). Two kernels by default:

* reducing averages exactly over the area that an output pixel covers. It keeps the mean of the picture and its range
  (no ringing outside [-1, 1]), and two reductions in a row equal one (1024 -> 256 -> 64 is 1024 -> 64), so the stages
  of a cascade are trained on pictures that agree. It is what a coarser sensor would have measured.
* enlarging is bicubic with Pillow's coefficient (a = -1/2).

The paper does not say how it resizes; Pillow's antialiased bicubic ("bicubic" in both directions) is the usual
alternative.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from imagen.checks import check_choice
from imagen.diffusion.parameterization import q_sample
from imagen.diffusion.schedules import CosineSchedule, Schedule
from imagen.diffusion.vocabulary import AugSpace, ResizeMode


def _area_weights(old: int, new: int, like: Tensor) -> Tensor:
    """(new, old): the share of every old pixel in every new one; rows sum to 1."""
    edges = torch.arange(old, device=like.device, dtype=torch.float64)
    start = torch.arange(new, device=like.device, dtype=torch.float64)[:, None] * (old / new)
    overlap = torch.minimum(edges + 1, start + old / new) - torch.maximum(edges, start)
    return (overlap.clamp(min=0) * (new / old)).to(like.dtype)


def _area(x: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = x.shape[-2:]
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(x, (height // size[0], width // size[1]))
    return _area_weights(height, size[0], x) @ x @ _area_weights(width, size[1], x).T


def _interpolate(x: Tensor, size: tuple[int, int], mode: ResizeMode) -> Tensor:
    if mode == "area":
        return _area(x, size)
    if mode == "nearest":
        return F.interpolate(x, size, mode="nearest-exact")
    if mode == "bilinear_corners":
        return F.interpolate(x, size, mode="bilinear", align_corners=True)
    return F.interpolate(x, size, mode=mode, antialias=True)


def resize(x: Tensor, size: int | tuple[int, int], mode: ResizeMode = "auto") -> Tensor:
    """Resample pictures to ``size`` (a side, or (height, width)).

    Args:
        x: (B, C, H, W), floating point.
        mode: "auto" reduces by area and enlarges by bicubic (see the head of this file); "bicubic" and "bilinear"
            are antialiased when reducing and equal Pillow's filters of those names; "area" is the mean over the pixels
            a target pixel touches, Pillow's BOX where the ratio is whole; "bilinear_corners" is DeepFloyd IF's
            enlargement (align_corners); "nearest" is for previews.

    Returns:
        (B, C, height, width) in the dtype of ``x``, computed in at least float32; ``x`` itself if it has the size.
        Bicubic may leave the range of ``x`` at hard edges.

    Raises:
        ValueError: an unknown mode, a size below 1, or a tensor that is not (B, C, H, W) floating point.
    """
    check_choice("mode", mode, get_args(ResizeMode))
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x is {tuple(x.shape)} {x.dtype}; expected (B, C, H, W) in floating point")
    target = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(target) < 1:
        raise ValueError(f"size={size} is not positive")
    height, width = x.shape[-2:]
    if target == (height, width):
        return x
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if mode == "auto":
        wide = _area(wide, (min(target[0], height), min(target[1], width)))
        wide = wide if wide.shape[-2:] == target else _interpolate(wide, target, "bicubic")
    else:
        wide = _interpolate(wide, target, mode)
    return wide.to(x.dtype)


def aug_noise_shape(
    lowres_shape: tuple[int, ...] | torch.Size, size: int | tuple[int, int], space: AugSpace = "lowres"
) -> tuple[int, ...]:
    """The shape of the noise that :func:`augment_lowres` needs: of the small picture, or of the enlarged one."""
    check_choice("aug_space", space, get_args(AugSpace))
    if space == "lowres":
        return tuple(lowres_shape)
    return (*lowres_shape[:-2], *((size, size) if isinstance(size, int) else size))


def augment_lowres(
    lowres: Tensor,
    level: Tensor,
    noise: Tensor,
    size: int | tuple[int, int],
    space: AugSpace = "lowres",
    schedule: Schedule | None = None,
    mode: ResizeMode = "auto",
) -> Tensor:
    """Corrupt the low-resolution condition with Gaussian noise and enlarge it (paper, section 2.4 and appendix D.2).

    Args:
        lowres: (B, C, h, w) in [-1, 1].
        level: (B,) in [0, 1] (clamped), the paper's aug_level: uniform in training, fixed in sampling. The network
            is told timestep_from_t(level).
        noise: standard normal, of :func:`aug_noise_shape`.
        size: the stage's side or (height, width).
        space: "lowres" (the paper) adds the noise to the small picture, then enlarges; "upsampled" (DeepFloyd IF)
            enlarges first. There, averaging over blocks of x4 would undo most of the noise.
        schedule: maps the level to log-SNR as it maps t; None is the cosine (the paper is silent). At level 0 the
            cosine leaves sigma = 0.012.
        mode: of :func:`resize`.

    Returns:
        (B, C, height, width), the dtype of ``lowres``.

    Raises:
        ValueError: shapes that do not fit, or an unknown space.
    """
    expected = aug_noise_shape(lowres.shape, size, space)
    if tuple(noise.shape) != expected:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; aug_space={space!r} needs {expected}")
    if level.shape != lowres.shape[:1]:
        raise ValueError(f"level has shape {tuple(level.shape)}; expected one level per image, ({lowres.shape[0]},)")
    log_snr = (schedule or CosineSchedule()).log_snr(level.double())
    if space == "lowres":
        return resize(q_sample(lowres, noise, log_snr), size, mode)
    return q_sample(resize(lowres, size, mode), noise, log_snr)
