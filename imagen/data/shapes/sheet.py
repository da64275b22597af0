"""Look at the shapes world: a contact sheet of samples with their captions.

python -m imagen.data.shapes.sheet --out sheet.png --count 20
python -m imagen.data.shapes.sheet --out stages.png --count 3 --stages
"""

from __future__ import annotations

import argparse
import itertools
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from imagen.disk import whole
from imagen.errors import Parser, run_command

from .dataset import ShapesDataset
from .language import Split

_LINE = 13  # height of a line of text, in pixels


def tile(image: Tensor, text: str, side: int) -> Image.Image:
    """One picture (3, H, W) in [-1, 1], enlarged or reduced to ``side`` pixels, with up to four lines of text below."""
    pixels = ((image.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    kernel = Image.Resampling.NEAREST if image.shape[-1] < side else Image.Resampling.BOX
    picture = Image.new("RGB", (side, side + 4 * _LINE + 4), "white")
    picture.paste(Image.fromarray(pixels).resize((side, side), kernel))
    lines = textwrap.wrap(text, max(8, side // 6))[:4]
    ImageDraw.Draw(picture).multiline_text((2, side + 2), "\n".join(lines), fill="black", spacing=2)
    return picture


def arrange(tiles: Sequence[Image.Image], columns: int, gap: int = 8) -> Image.Image:
    """Tiles of one size, row by row, on white, ``gap`` pixels between them and around."""
    width, height = tiles[0].width + gap, tiles[0].height + gap
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for number, image in enumerate(tiles):
        sheet.paste(image, (gap + number % columns * width, gap + number // columns * height))
    return sheet


def draw(count: int, seed: int, split: Split, side: int, stages: bool) -> list[Image.Image]:
    """The first ``count`` samples at 256 px; with ``stages`` those with a patterned object, three tiles each: at 64 px,
    at 256 px, and a quarter of the 1024-px picture.
    """
    views = {"": ShapesDataset(256, seed, split)}
    if stages:
        views = {
            "64 px: ": ShapesDataset(64, seed, split),
            "256 px: ": ShapesDataset(256, seed, split),
            "256 of 1024 px: ": ShapesDataset(1024, seed, split, crop=256, lowres_size=256),
        }
    first = next(iter(views.values()))
    wanted = (n for n in itertools.count() if not stages or any(thing.pattern for thing in first.scene(n)[0].things))
    drawn = ((name, view[index]) for index in itertools.islice(wanted, count) for name, view in views.items())
    return [tile(sample.image, name + sample.caption, side) for name, sample in drawn]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a contact sheet as PNG, see the module's docstring; returns the exit code."""
    parser = Parser(prog="python -m imagen.data.shapes.sheet", description="contact sheet as PNG")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--count", type=int, default=20, help="number of samples (20)")
    parser.add_argument("--columns", type=int, default=5, help="samples per row (5)")
    parser.add_argument("--side", type=int, default=160, help="side of a tile in pixels (160)")
    parser.add_argument("--seed", type=int, default=0, help="of the data set (0)")
    parser.add_argument("--split", choices=get_args(Split), default="train", help="of the data set (train)")
    parser.add_argument("--stages", action="store_true", help="show patterned samples at each stage's resolution")
    options = parser.parse_args(arguments)
    if min(options.count, options.columns, options.side) < 1 or options.seed < 0:
        parser.error("--count, --columns and --side must be at least 1, --seed at least 0")
    return run_command("imagen.data.shapes.sheet", partial(write, options), "; nothing was written")


def write(options: argparse.Namespace) -> None:
    """Draw what the options ask for. Raises: ValueError, OSError: a file of no kind that Pillow writes, or no room."""
    kind = Image.registered_extensions().get(options.out.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"--out {str(options.out)!r} has no ending of a picture that can be written: use .png")
    tiles = draw(options.count, options.seed, options.split, options.side, options.stages)
    sheet = arrange(tiles, 3 if options.stages else options.columns)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with whole(options.out) as partial_file:
        sheet.save(partial_file, format=kind, optimize=True)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
