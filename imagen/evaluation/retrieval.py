"""Retrieval: which pictures does a CLIP find for a text, and which text for a picture?

Every picture's caption is asked for among all pictures of ``--data``, and every picture among all captions. R@k is how
often what belongs to it, or to the same caption, is among the k nearest (Radford et al. 2021, appendix E.1).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imagen.evaluation.pictures import open_pictures
from imagen.evaluation.report import Tile, note, save_sheet, table, write_result
from imagen.evaluation.stats import Share
from imagen.evaluation.zeroshot import add_clip_arguments, load_clip

RANKS = (1, 5, 10)
QUERIES, FOUND = 12, 5  # of the sheet


def first_right(order: NDArray[np.intp], labels: NDArray[np.intp]) -> NDArray[np.intp]:
    """(N,): at which place, from 0, the first of the same label stands in each row of ``order`` (N, N), the nearest
    first.
    """
    found: NDArray[np.intp] = (labels[order] == labels[:, None]).argmax(axis=1)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_clip_arguments(parser)
    add = parser.add_argument
    add("--data", required=True, metavar="PICTURES", help="with captions: a folder, shards, my.yaml, shapes:...")
    add("--num", type=int, help="the first pictures alone")
    add("--size", type=int, help="side of pictures that are drawn, as those of shapes:heldout:500")


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Embed, rank, print the table, write ``retrieval.json`` and a sheet of texts with the pictures found for them."""
    pictures = open_pictures(args.data, args.size, args.num)
    encoder = load_clip(args)
    vectors, captions, small = [], list[str](), list[Image.Image]()
    for batch in pictures.batches(args.batch_size):
        bare = next((one.key for one in batch if one.caption is None), None)
        if bare is not None:
            raise ValueError(f"--data {args.data!r} has no caption for {bare!r}; retrieval is by captions")
        vectors.append(encoder.images([one.picture for one in batch], args.batch_size))
        captions += [str(one.caption) for one in batch]
        small += [one.picture.resize((160, 160)) if one.picture.width > 160 else one.picture for one in batch]
    if pictures.skipped:
        note(pictures.told())
    cosines = encoder.texts(captions) @ torch.cat(vectors).T
    labels = np.unique(captions, return_inverse=True)[1]
    orders = {
        "text to picture": cosines.argsort(dim=1, descending=True, stable=True).numpy(),
        "picture to text": cosines.T.argsort(dim=1, descending=True, stable=True).numpy(),
    }
    found = {
        name: {f"R@{rank}": Share.of((first_right(order, labels) < rank).tolist()) for rank in RANKS}
        for name, order in orders.items()
    }
    head = ("", *(f"R@{rank}, 95 % interval" if rank == 1 else f"R@{rank}" for rank in RANKS))
    print(f"{len(captions)} pictures, {len(set(captions))} different captions\n")
    print(table([head, *((name, *shares.values()) for name, shares in found.items())]))
    tiles = [
        Tile(small[picture], captions[query] if place == 0 else "", bool(labels[picture] == labels[query]))
        for query in range(min(QUERIES, len(captions)))
        for place, picture in enumerate(orders["text to picture"][query, :FOUND])
    ]
    save_sheet(args.out / "retrieval.png", tiles, min(FOUND, len(captions)))
    write_result(args, command, clip=encoder.name, pictures=len(captions), result=found)
