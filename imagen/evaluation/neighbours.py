"""The nearest training picture of each picture: was it copied?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen.evaluation.pictures import open_pictures
from imagen.evaluation.report import Tile, save_sheet
from imagen.evaluation.scoring import Features, read_features
from imagen.scores.features import FeatureNetwork
from imagen.scores.manifold import nearest

CLOSEST = 20  # pairs of a sheet


def nearest_pictures(args: argparse.Namespace, x: Features, network: FeatureNetwork, sheet: Path) -> dict[str, Any]:
    """For each picture the nearest one of ``--train`` and how far it is in the network's features; the closest pairs as
    a sheet, each picture with its neighbour at its right.
    """
    training = read_features(open_pictures(args.train, args.size), [network], None, args.batch_size)
    rows, distances = nearest(x.of[network.label], training.of[network.label])
    order = np.argsort(distances, kind="stable")
    pairs = [(int(row), int(rows[row])) for row in order[:CLOSEST]]
    own = _some(x.name, args.size, args.num, {row for row, _ in pairs})
    theirs = _some(args.train, args.size, None, {row for _, row in pairs})
    tiles = [
        tile
        for row, other in pairs
        for tile in (
            Tile(own[row], x.keys[row]),
            Tile(theirs[other], f"{training.keys[other]} at {distances[row]:.3g}"),
        )
    ]
    save_sheet(sheet, tiles, columns=10)
    quantiles = np.quantile(distances, [0.0, 0.01, 0.1, 0.5])
    names = [training.keys[row] for row in rows]
    return {
        "network": network.label,
        "quantiles": dict(zip(("0", "0.01", "0.1", "0.5"), quantiles.tolist(), strict=True)),
        "pictures": [[key, name, float(d)] for key, name, d in zip(x.keys, names, distances, strict=True)],
    }


def _some(name: str, size: int | None, num: int | None, wanted: set[int]) -> dict[int, Image.Image]:
    """The pictures of these numbers, read once more."""
    found = {}
    for number, one in enumerate(open_pictures(name, size, num)):
        if number in wanted:
            found[number] = one.picture
        if len(found) == len(wanted):
            break
    return found
