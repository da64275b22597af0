"""Scores of pictures each beside the one it should be: super-resolution, restoration, translation."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagen.evaluation.pictures import PictureSet, open_arrays, open_pictures
from imagen.evaluation.zeroshot import compute_device
from imagen.scores.resampling import half_samples
from imagen.scores.sets import Array

METRICS = ("psnr", "ssim", "mae", "lpips")


def scores(args: argparse.Namespace, name: str, metrics: Sequence[str]) -> dict[str, Any]:
    """The means of the asked ones over all pairs, with intervals, and each pair's own.

    psnr, ssim and mae are of the stored numbers, in any number of channels; lpips of colours.

    Raises:
        ValueError: sets of other numbers of pictures, or pictures that cannot be compared.
    """
    values: dict[str, Array] = {}
    keys: list[str] = []
    if {*metrics} - {"lpips"}:
        values, keys = _of_numbers(args, name)
    if "lpips" in metrics:
        values["lpips"], keys = _lpips(args, name)
    found: dict[str, Any] = {}
    for metric in (one for one in METRICS if one in metrics):
        own = values[metric]
        if len(own) < 2 or not np.isfinite(own).all():  # psnr of equal pictures is infinite
            found[metric] = float(own.mean())
        else:
            found[metric] = half_samples(lambda rows, own=own: float(own[rows].mean()), [len(own)], args.resamples)[0]
    own_values = {metric: values[metric].tolist() for metric in found}
    return {"count": len(keys), "scores": found, "pairs": {"keys": keys, **own_values}}


def _of_numbers(args: argparse.Namespace, name: str) -> tuple[dict[str, Array], list[str]]:
    from imagen.scores.pairs import pair_scores

    sets = [name, args.against, *([args.masks] if args.masks else [])]
    rows = list(in_step([open_arrays(one, args.num) for one in sets]))
    masks = None if args.masks is None else [(row[2].picture > 0).any(axis=0) for row in rows]
    found = pair_scores([r[0].picture for r in rows], [r[1].picture for r in rows], args.data_range, masks)
    for number, row in enumerate(rows):
        inside = np.ones(row[0].picture.shape[1:], dtype=bool) if masks is None else masks[number]
        values = np.stack([one.picture[:, inside] for one in row[:2]])  # (2, C, pixels)
        widest = float((values.max(axis=(0, 2)) - values.min(axis=(0, 2))).max())
        if widest > args.data_range:
            told = f"{row[0].key}: values are {widest:g} apart, more than --data-range {args.data_range:g}"
            raise ValueError(f"{told}; give the range of the data")
    return found, [row[0].key for row in rows]


def _lpips(args: argparse.Namespace, name: str) -> tuple[Array, list[str]]:
    from imagen.scores.lpips import Lpips

    lpips, values, keys = Lpips(args.lpips, compute_device(args)), list[Array](), list[str]()
    for x, y in in_step([open_pictures(one, args.size, args.num) for one in (name, args.against)]):
        values.append(lpips(_signed(x.picture), _signed(y.picture)))
        keys.append(x.key)
    return np.concatenate(values), keys


def _signed(picture: Any) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def in_step(sets: Sequence[PictureSet[Any]]) -> Iterator[tuple[Any, ...]]:
    """The sets' pictures side by side, in order.

    Raises:
        ValueError: one of the sets ends before the others, or has passed over a picture.
    """
    try:
        yield from zip(*sets, strict=True)
    except ValueError as error:
        if "zip()" not in str(error):
            raise
        _check_whole(sets)
        names = " and ".join(repr(one.name) for one in sets)
        raise ValueError(f"{names} hold other numbers of pictures: pairs need as many of each, in one order") from None
    _check_whole(sets)


def _check_whole(sets: Sequence[PictureSet[Any]]) -> None:
    """Raises ValueError where a picture was passed over: what stands beside which is not known then."""
    for one in sets:
        if one.skipped:
            raise ValueError(f"{one.told()}: no pairs can be made")
