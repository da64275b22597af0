"""What a field of a record is, beside its image and caption. A consumer names the fields that it wants and their kinds;
sources hand over what is stored, whatever it means.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .decode import Decoded, Picture, Pixels, Raw, Unusable, decode, stored, to_pixels

Value = Tensor | int


class ClassName(NamedTuple):
    """A class as a source knows it that numbers its classes itself; another's numbers need not be those."""

    number: int
    name: str


@dataclass(frozen=True)
class Paired:
    """A picture that belongs to the image: cut, windowed and mirrored with it; (channels, h, w) float32 in [-1, 1].

    Attributes:
        size: side of the whole picture in pixels, a divisor of the image's.
        channels: that it is decoded to.
        resize: ``"area"``: means over areas; ``"nearest"``: the stored pixel in the middle of each.
        binary: a mask: 1 where half of the stored range or more is reached (by half of the area or more), else 0. A
            picture of the numbers 0 and 1 alone is read as it is.
    """

    size: int
    channels: int = 3
    resize: Literal["area", "nearest"] = "area"
    binary: bool = False

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels < 1 or self.resize not in ("area", "nearest"):
            raise ValueError(
                f"size is {self.size}, channels {self.channels} and resize {self.resize!r}; "
                "expected positive numbers, and 'area' or 'nearest'"
            )

    def decode(self, raw: Any, name: str, root: Path | None = None, profiles: bool = True) -> Decoded:
        """The whole picture as stored, with notes on its repairs; of a mask, pixels of -1 and 1.

        Colour profiles say nothing about a mask, or about numbers that stand for something.

        Raises:
            Unusable: none there, or as :func:`imagen.data.decode.decode`.
        """
        stored = picture_of(raw, root, f"has no {name} picture")
        try:
            found = decode(stored, "", self.channels, profiles and self.resize == "area" and not self.binary)
        except Unusable as error:
            raise Unusable(f"{name} picture: {error}") from error
        picture = _two_valued(found.picture) if self.binary else found.picture
        return Decoded(picture, tuple(f"{name} picture: {repair}" for repair in found.repairs))

    def finish(self, planes: Tensor) -> Tensor:
        """(C, h, w) in [-1, 1], resized -> as samples hold it."""
        return (planes >= -1e-4).to(planes.dtype) if self.binary else planes  # half of an area, but for rounding


def _two_valued(picture: Picture) -> Pixels:
    pixels = to_pixels(picture)
    as_it_is = not ((pixels != 0) & (pixels != 1)).any()
    half = 0.5 if as_it_is else 127.5 if pixels.dtype == np.uint8 else 0
    return np.where(pixels >= half, np.float32(1), np.float32(-1))


@dataclass(frozen=True)
class Encoded:
    """Something encoded before: (L, width) float32, 1 <= L <= tokens. A ``.npy`` file, its bytes, or the numbers.

    Attributes:
        tokens: the most that one may have.
        width: of each.
    """

    tokens: int
    width: int

    def read(self, raw: Any, name: str, root: Path | None = None) -> Tensor:
        """The numbers of what is stored: (L, width).

        Raises:
            Unusable: none there, no ``.npy`` file, of another shape, too long, or with numbers that are not finite.
        """
        raw = content_of(raw, name, root)
        try:
            values = np.load(io.BytesIO(raw), allow_pickle=False) if isinstance(raw, bytes) else np.asarray(raw)
        except (OSError, ValueError, EOFError) as error:
            reason = " ".join(str(error).split())[:120]
            raise Unusable(f"{name} is no .npy file of numbers: {reason}") from error
        if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.floating):
            raise Unusable(f"{name} holds {getattr(values, 'dtype', type(values).__name__)}; expected floats")
        if values.ndim != 2 or values.shape[1] != self.width or not 0 < len(values) <= self.tokens:
            raise Unusable(f"{name} has shape {values.shape}; expected (1 to {self.tokens} tokens, {self.width})")
        if not np.isfinite(values).all():
            raise Unusable(f"{name} holds numbers that are not finite")
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))


@dataclass(frozen=True)
class Label:
    """A class: a whole number in [0, classes). Stored as one, or as one of the ``names``, whose place is the number.

    Attributes:
        classes: how many there are; 0 stands for as many as there are names.
        names: of the classes, in order; an underscore and a space are the same.
    """

    classes: int = 0
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = len(self.names)
        if len(self._places) < names or self.count < 1 or (names and self.classes not in (0, names)):
            raise ValueError(
                f"classes is {self.classes} and names are {self.names}; expected a positive number, or as many "
                "different names"
            )

    @property
    def count(self) -> int:
        """How many classes there are."""
        return self.classes or len(self.names)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {_plain(name): number for number, name in enumerate(self.names)}

    def read(self, raw: Any, name: str, root: Path | None = None) -> int:
        """The number of the class that is stored: a number, a text, or a text file or its bytes. A text in a table is
        no file's path.

        Raises:
            Unusable: none there, none of the names, or a number out of range.
        """
        if isinstance(raw, ClassName):
            raw = raw.name if self.names else raw.number
        found = content_of(int(raw) if isinstance(raw, bool) else raw, name, None)
        try:
            text = _plain(found.decode("utf-8-sig") if isinstance(found, bytes) else str(found))
        except UnicodeDecodeError as error:
            raise Unusable(f"{name} is not UTF-8 ({error.reason} at byte {error.start})") from error
        if not text:
            raise Unusable(f"has no {name}")
        if text in self._places:
            return self._places[text]
        expected = f"a whole number from 0 to {self.count - 1}"
        if self.names:
            expected = f"one of {', '.join(self.names[:8])}{', ...' if self.count > 8 else ''}, or {expected}"
        try:
            number = float(text)  # a table with gaps holds its whole numbers as floats
        except ValueError:
            number = -1.0
        if not (number.is_integer() and 0 <= number < self.count):
            raise Unusable(f"{name} is {text[:80]!r}; expected {expected}")
        return int(number)


Kind = Paired | Encoded | Label


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def content_of(raw: Any, name: str, root: Path | None) -> Any:
    """The bytes of a file that is named, and all else as it is.

    Args:
        name: the field's.
        root: folder that paths in texts are relative to; None: a text is no path.

    Raises:
        Unusable: nothing there (None, no text, or a number that is none, as tables with gaps have), or no such file.
    """
    if raw is None or (isinstance(raw, str) and not raw.strip()) or (isinstance(raw, float) and raw != raw):
        raise Unusable(f"has no {name}")
    raw = root / raw if isinstance(raw, str) and root is not None else raw
    try:
        return stored(raw) if isinstance(raw, Path) else raw
    except Unusable as error:
        raise Unusable(f"{name} {error}") from error


def picture_of(raw: Any, root: Path | None, otherwise: str) -> Raw:
    """A stored picture: a file, its bytes, an array, a decoded picture, or a mapping as Hugging Face writes them.

    Args:
        root: as :func:`content_of`.

    Raises:
        Unusable: none of these; ``otherwise`` is the reason.
    """
    if isinstance(raw, Mapping):
        raw = raw.get("bytes") if raw.get("bytes") is not None or root is None else raw.get("path")
    if isinstance(raw, str) and raw and root is not None:
        raw = root / raw
    if not isinstance(raw, Path | bytes | np.ndarray | Image.Image):
        raise Unusable(otherwise)
    return raw
