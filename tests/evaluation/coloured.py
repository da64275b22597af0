"""In place of a trained CLIP: an encoder that sees one colour and reads one, so that every ranking is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from imagen.data.shapes.language import COLORS


class Colours:
    """Vectors of pictures are the colour in their middle, those of texts the colour that they name first."""

    name = "colours"

    def images(self, pictures: Sequence[Image.Image], batch_size: int = 64) -> Tensor:
        return _unit([one.convert("RGB").getpixel((one.width // 2, one.height // 2)) for one in pictures])

    def texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        named = [[word for word in text.split() if word in COLORS] for text in texts]
        return _unit([COLORS[words[0]] if words else (128, 128, 129) for words in named])


class Blind(Colours):
    """Sees and reads nothing."""

    name = "blind"

    def images(self, pictures: Sequence[Image.Image], batch_size: int = 64) -> Tensor:
        return torch.ones(len(pictures), 3) / 3**0.5

    def texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        return torch.ones(len(texts), 3) / 3**0.5


class Lettered(Colours):
    """Likes of every text other colours, all somewhat: of noise one is nearest, and no score is 0."""

    name = "lettered"

    def images(self, pictures: Sequence[Image.Image], batch_size: int = 64) -> Tensor:
        return normalize(super().images(pictures).abs(), dim=1)

    def texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        rows = [torch.rand(3, generator=torch.Generator().manual_seed(crc32(text.encode()))) for text in texts]
        return normalize(torch.stack(rows), dim=1)


def _unit(colours: Sequence[object]) -> Tensor:
    return normalize(torch.tensor(colours, dtype=torch.float32) - 128, dim=1)


def plain(color: str, shade: int = 0, side: int = 16) -> Image.Image:
    """A picture of a colour of the shapes world, ``shade`` darker."""
    return Image.new("RGB", (side, side), tuple(max(0, part - shade) for part in COLORS[color]))


def write_pictures(folder: Path, said: Sequence[tuple[str, str]], side: int = 16) -> Path:
    """Pictures of plain colours, all a little different, with their captions: ("red", "a red thing"), ..."""
    folder.mkdir(parents=True)
    for number, (color, caption) in enumerate(said):
        plain(color, number, side).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(caption)
    return folder
