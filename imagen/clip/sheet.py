"""A sheet of pictures, each with the caption that was picked for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from imagen.captions import captioned
from imagen.disk import whole

COLUMNS, GAP = 6, 4


def write_sheet(path: Path, images: Tensor, captions: Sequence[str], picked: Sequence[str]) -> None:
    """Write pictures (N, C, H, W) in [-1, 1] with their picked captions as a PNG; where another than its own was picked
    for a picture, both are under it.
    """
    told = [one if one == own else f"NO: {one} (it is: {own})" for own, one in zip(captions, picked, strict=True)]
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to("cpu").numpy().astype(np.uint8)
    tiles = [captioned(_picture(one), text) for one, text in zip(pixels, told, strict=True)]
    width, height = (max(tile.size[axis] for tile in tiles) + GAP for axis in (0, 1))
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (width * min(COLUMNS, len(tiles)), height * rows), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % COLUMNS * width, number // COLUMNS * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        sheet.save(partial, format="PNG")


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
