"""What every source of training data gives: samples, one per index, and batches of them; and pictures in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from .transforms import Square, cut_square, item_rng, read_image, resize_square, to_tensor

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Sample:
    """One training example.

    Attributes:
        key: names the sample in logs; unique in its source.
        image: (C, H, W) float32 in [-1, 1].
        caption: empty when there is none.
        lowres: (C, h, w) float32 in [-1, 1], the same window at the previous stage's resolution; None for a base stage.
    """

    key: str
    image: Tensor
    caption: str = ""
    lowres: Tensor | None = None


class Source(Protocol):
    """Samples by index. An index at or past ``length`` is a later epoch's: the same item, drawn (cropped) anew."""

    @property
    def length(self) -> int | None:
        """Number of items; None for an endless source."""

    def __getitem__(self, index: int) -> Sample: ...


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Stack samples into ``image`` (B, C, H, W), ``caption`` and ``key`` (lists of B) and, if there, ``lowres``.

    Raises:
        ValueError: shapes differ, or only some of the samples have a low-res picture.
    """
    batch: dict[str, Any] = {
        "key": [sample.key for sample in samples],
        "image": _stack([sample.image for sample in samples], "image"),
        "caption": [sample.caption for sample in samples],
    }
    lowres = [sample.lowres for sample in samples if sample.lowres is not None]
    if lowres and len(lowres) < len(samples):
        missing = next(sample.key for sample in samples if sample.lowres is None)
        raise ValueError(f"sample {missing!r} has no lowres but others of its batch have; give it to all or to none")
    if lowres:
        batch["lowres"] = _stack(lowres, "lowres")
    return batch


def _stack(tensors: Sequence[Tensor], name: str) -> Tensor:
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise ValueError(f"{name} has the shapes {shapes} in one batch; expected one shape: crop or resize them alike")
    return torch.stack(list(tensors))


class FolderDataset(Dataset[Sample]):
    """Your own pictures: image files in a folder and its subfolders, each with its caption in a ``.txt`` beside it.

    Items are sorted by their path inside the folder, which is also their key. Hidden files and folders are passed over.
    A picture is turned upright (EXIF), made RGB, cut to its largest square and resized to ``size`` (bicubic; a smaller
    picture is enlarged). What is random is a function of (seed, index): index ``i + n * length`` is item ``i`` cropped
    and flipped anew.

    Args:
        root: the folder.
        size: side of the whole picture in pixels.
        seed: of random squares, crops and flips; at least 0.
        crop: side in pixels of a random window of the picture; None gives the whole picture.
        lowres_size: side of the previous stage's picture, must divide ``size``: samples then hold ``lowres``, the
            resized picture over the same window, whose corner falls on a low-res pixel.
        square: where a picture that is not square is cut, ``"center"`` or ``"random"``.
        flip: mirror half of the pictures. Off by default: captions may name left and right.
        captions: ``"required"``: a picture without a ``.txt`` is an error; ``"optional"``: its caption is empty.

    Raises:
        ValueError: no such folder, no pictures in it, a missing caption, or sizes that do not fit each other. Reading
            an item raises it for an unreadable picture and a caption that is not UTF-8; the message names the file.
    """

    def __init__(
        self,
        root: str | Path,
        size: int,
        seed: int = 0,
        crop: int | None = None,
        lowres_size: int | None = None,
        square: Square = "center",
        flip: bool = False,
        captions: Literal["required", "optional"] = "required",
    ) -> None:
        self.root, self.size, self.seed, self.lowres_size = Path(root), size, seed, lowres_size
        self.crop = size if crop is None else crop
        self.square, self.flip = square, flip
        if seed < 0 or not 0 < self.crop <= size:
            raise ValueError(f"seed is {seed}, size {size}, crop {crop}; expected seed >= 0 and 0 < crop <= size")
        if lowres_size is not None and (lowres_size < 1 or size % lowres_size or self.crop * lowres_size % size):
            raise ValueError(
                f"lowres_size is {lowres_size}; expected a divisor of size, which is {size}, "
                f"such that crop, which is {self.crop}, covers whole low-res pixels"
            )
        if square not in ("center", "random") or captions not in ("required", "optional"):
            raise ValueError(
                f"square is {square!r} and captions is {captions!r}; "
                "expected 'center' or 'random', and 'required' or 'optional'"
            )
        self.paths = _find_images(self.root)
        bare = [path for path in self.paths if not path.with_suffix(".txt").is_file()]
        if bare and captions == "required":
            raise ValueError(
                f"{len(bare)} of {len(self.paths)} pictures in {root} have no caption, the first is {bare[0]}; "
                f"write {bare[0].with_suffix('.txt').name} beside it, or set captions to 'optional'"
            )

    @property
    def length(self) -> int:
        """Number of pictures."""
        return len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def captions(self) -> Iterator[tuple[str, ...]]:
        """The captions of each item, in the items' order, without its picture."""
        return ((_read_caption(path),) for path in self.paths)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def sample(self, index: int) -> Sample:
        """The sample of an index (>= 0): image (3, crop, crop), lowres (3, crop · lowres_size / size, same) or None."""
        if index < 0:
            raise IndexError(f"index is {index}; expected at least 0")
        rng = item_rng(self.seed, index)
        path = self.paths[index % len(self.paths)]
        picture = resize_square(cut_square(read_image(path), self.square, rng), self.size)
        if self.flip and rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        cells = self.lowres_size or self.size
        wide = self.crop * cells // self.size  # the window in low-res pixels
        left, top = (int(c) for c in rng.integers(cells - wide + 1, size=2))
        image, lowres = _cut(picture, left, top, wide, cells), None
        if self.lowres_size is not None:
            lowres = to_tensor(_cut(resize_square(picture, self.lowres_size), left, top, wide, cells))
        return Sample(path.relative_to(self.root).as_posix(), to_tensor(image), _read_caption(path), lowres)


def _find_images(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ValueError(f"there is no folder {str(root)!r}; expected one with pictures and their .txt captions")
    paths = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    ]
    if not paths:
        raise ValueError(f"no pictures in {str(root)!r}; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _read_caption(path: Path) -> str:
    """The caption beside a picture, on one line; empty where there is no file."""
    text = path.with_suffix(".txt")
    try:
        return " ".join(text.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise ValueError(f"caption {text} is not UTF-8 ({error}); save it as UTF-8") from error


def _cut(picture: Image.Image, left: int, top: int, wide: int, cells: int) -> Image.Image:
    """The window of ``wide`` cells whose corner is at (left, top), where ``cells`` cells span the picture."""
    scale = picture.width // cells
    return picture.crop((left * scale, top * scale, (left + wide) * scale, (top + wide) * scale))
