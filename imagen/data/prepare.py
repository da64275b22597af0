"""One stored picture made into a sample: decoded, cut, resized, captioned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from imagen.checks import check_choice

from .decode import Decoded, Pixels, Unusable, decode
from .fields import Kind, Paired, Value
from .records import Record
from .sources import Note, Sample
from .transforms import Resize, Square, cut, cut_square, extent, nearest_square, resize_square, to_tensor


@dataclass(frozen=True)
class Want:
    """What a consumer wants of each picture, whatever source it comes from.

    Attributes:
        size: side of the whole picture in pixels.
        lowres_size: side of the same picture made small, a divisor of ``size``; None wants none.
        channels: of both.
        captions: ``"required"``: a picture without a caption is skipped; ``"optional"``: its caption is empty.
        fields: what else, by name, and of which kind each is; a `data` section says where it comes from.
    """

    size: int
    lowres_size: int | None = None
    channels: int = 3
    captions: Literal["required", "optional"] = "required"
    fields: Mapping[str, Kind] = field(default_factory=dict)


class Prepare:
    """Callable: a record and randomness -> a sample.

    A picture is decoded (:func:`imagen.data.decode.decode`), cut to its largest square and resized to ``size``.

    Args:
        want: what samples hold: ``lowres``, the picture itself made small, and paired pictures are over the same
            window, whose corner falls on one of their pixels. Fields that are not wanted are not read.
        crop: side in pixels of a random window of the picture; None gives the whole picture.
        square: where a picture that is not square is cut, ``"center"`` or ``"random"``.
        flip: mirror half of the pictures. Off by default: captions may name left and right.
        template: with ``{}`` where the caption (a class name, say) goes; None leaves captions alone.
        resize: ``"area"``: means over areas, and bicubic where a picture is enlarged; ``"bicubic"``: PIL's bicubic in
            both directions, and its box for the low-res picture, which is another reduction of the same original.
        profiles: take colours from the profiles of files (:mod:`imagen.data.profiles`).
        min_size: pixels that the shorter side of a picture must have; from there up to ``size`` it is enlarged.

    Raises:
        ValueError: sizes or words that do not fit.
    """

    def __init__(
        self,
        want: Want,
        crop: int | None = None,
        square: Square = "center",
        flip: bool = False,
        template: str | None = None,
        resize: Resize = "area",
        profiles: bool = True,
        min_size: int = 1,
    ) -> None:
        check_choice("square", square, get_args(Square))
        check_choice("captions", want.captions, ("required", "optional"))
        check_choice("resize", resize, get_args(Resize))
        self.want, self.square, self.flip, self.template, self.resize = want, square, flip, template, resize
        size, self.profiles, self.min_size = want.size, profiles, min_size
        self.crop = size if crop is None else crop
        self.paired = {name: kind for name, kind in want.fields.items() if isinstance(kind, Paired)}
        self.reduce: Literal["area", "box"] = "area" if resize == "area" else "box"  # of smaller pictures
        if not 0 < self.crop <= size:
            raise ValueError(f"size is {size} and crop {crop}; expected 0 < crop <= size")
        small = {
            "lowres_size": want.lowres_size,
            **{f"size of {name}": kind.size for name, kind in self.paired.items()},
        }
        for name, side in small.items():
            if side is not None and (side < 1 or size % side or self.crop * side % size):
                raise ValueError(
                    f"{name} is {side}; expected a divisor of size, which is {size}, "
                    f"such that crop, which is {self.crop}, covers whole low-res pixels"
                )
        self.cells = gcd(size, *(side for side in small.values() if side))  # on which the corners of windows lie

    def __call__(self, key: str, record: Record, rng: np.random.Generator) -> tuple[Sample, list[Note]]:
        """The sample, image (C, crop, crop), lowres (C, crop · lowres_size / size, same) or None, and fields; and its
        repairs.

        Raises:
            Unusable: why it cannot be made.
        """
        decoded = self._decoded(record)
        fields: dict[str, Value] = {
            name: kind.read(record.fields.get(name), name, record.root)
            for name, kind in self.want.fields.items()
            if not isinstance(kind, Paired)
        }
        where = 0.5 if self.square == "center" else rng.random()
        told = self._told(extent(decoded.picture), record.captions)
        pixels = resize_square(cut_square(decoded.picture, where), self.want.size, self.resize)
        pairs, more = self._paired(record, extent(decoded.picture), where)
        flipped = self.flip and rng.random() < 0.5
        wide = self.crop * self.cells // self.want.size  # the window in cells
        left, top = (int(c) for c in rng.integers(self.cells - wide + 1, size=2))

        def shown(whole: Pixels) -> Tensor:
            return to_tensor(cut(whole[:, ::-1] if flipped else whole, left, top, wide, self.cells))

        lowres = None
        if self.want.lowres_size is not None:  # by area, as the cascade reduces what it starts from
            lowres = shown(resize_square(pixels, self.want.lowres_size, self.reduce))
        fields.update((name, self.paired[name].finish(shown(pair))) for name, pair in pairs.items())
        notes = [Note(key, "repaired", repair) for repair in (*decoded.repairs, *more)]
        notes += [Note(key, "noted", one) for one in told]
        return Sample(key, shown(pixels), self._draw_caption(record.captions, rng), lowres, fields=fields), notes

    def _decoded(self, record: Record) -> Decoded:
        """The picture. Raises: Unusable, with both faults where it has no caption either."""
        missing = self.want.captions == "required" and not record.captions
        fault = f"has no caption{record.looked and ': '}{record.looked}"
        try:
            decoded = decode(record.image, record.name, self.want.channels, self.profiles)
        except Unusable as error:
            raise Unusable(f"{error}; and it {fault}" if missing else str(error)) from error
        if missing:
            raise Unusable(fault)
        return decoded

    def _told(self, stored: tuple[int, int], captions: tuple[str, ...]) -> list[str]:
        """What the owner of a picture of this extent, with these captions, should know. Raises: Unusable."""
        height, width = stored
        side = min(stored)
        if side < self.min_size:
            raise Unusable(
                f"is {width} x {height} pixels, smaller than {self.min_size}: data.min_size {side} lets it in, enlarged"
            )
        told = []
        if side < self.want.size:
            told.append(f"is {width} x {height} pixels, enlarged to {self.want.size}")
        if max(stored) > 2 * side:
            told.append(f"is {width} x {height} pixels, of which more than half are cut off")
        if captions and not all(captions):
            told.append("has an empty caption")
        if any("\0" in caption for caption in captions):
            told.append("has a caption with NUL characters: if it is UTF-16, save it as UTF-8")
        return told

    def _paired(self, record: Record, stored: tuple[int, int], where: float) -> tuple[dict[str, Pixels], list[str]]:
        """The whole pictures that are paired with one of the extent `stored`, and what was repaired in them."""
        pairs: dict[str, Pixels] = {}
        repairs: list[str] = []
        for name, kind in self.paired.items():
            pair = kind.decode(record.fields.get(name), name, record.root, self.profiles)
            (height, width), (high, wide) = stored, extent(pair.picture)
            if abs(width * high - wide * height) >= max(height, high):  # more than rounding
                raise Unusable(f"is {width} x {height} but its {name} picture {wide} x {high}: of another shape")
            square = cut_square(pair.picture, where)
            nearest = kind.resize == "nearest"
            pairs[name] = (
                nearest_square(square, kind.size) if nearest else resize_square(square, kind.size, self.reduce)
            )
            repairs += pair.repairs
        return pairs, repairs

    def _draw_caption(self, captions: tuple[str, ...], rng: np.random.Generator) -> str:
        """One of them; none is an empty one."""
        return self.phrase(captions[int(rng.integers(len(captions)))]) if captions else ""

    def phrase(self, caption: str) -> str:
        """A caption as training sees it: in the template."""
        return caption if self.template is None else self.template.replace("{}", caption)
