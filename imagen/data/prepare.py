"""One stored picture made into a sample: decoded, cut, resized, captioned."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Literal

import numpy as np
from torch import Tensor

from .decode import Pixels, Unusable, decode
from .fields import Kind, Paired, Value
from .records import NOTHING, Record
from .sources import Note, Sample
from .transforms import Resize, Square, cut, cut_square, extent, mirror, nearest_square, resize_square, to_tensor


class Prepare:
    """Callable: a record and randomness -> a sample.

    A picture is decoded (:func:`imagen.data.decode.decode`), cut to its largest square and resized to ``size``
    (a smaller picture is enlarged).

    Args:
        size: side of the whole picture in pixels.
        crop: side in pixels of a random window of the picture; None gives the whole picture.
        lowres_size: side of the low-res picture, must divide ``size``: samples then hold ``lowres``, the picture itself
            made small, over the same window, whose corner falls on a low-res pixel.
        square: where a picture that is not square is cut, ``"center"`` or ``"random"``.
        flip: mirror half of the pictures. Off by default: captions may name left and right.
        captions: ``"required"``: an item without a caption is skipped; ``"optional"``: its caption is empty.
        template: with ``{}`` where the caption (a class name, say) goes; None leaves captions alone.
        channels: of ``image`` and of ``lowres``.
        kinds: of the records' fields that samples hold; others are not read. A paired picture is over the same window,
            whose corner falls on one of its pixels.
        resize: ``"area"``: means over areas, and bicubic where a picture is enlarged; ``"bicubic"``: PIL's bicubic in
            both directions, and its box for the low-res picture, which is another reduction of the same original.

    Raises:
        ValueError: sizes or words that do not fit.
    """

    def __init__(
        self,
        size: int,
        crop: int | None = None,
        lowres_size: int | None = None,
        square: Square = "center",
        flip: bool = False,
        captions: Literal["required", "optional"] = "required",
        template: str | None = None,
        channels: int = 3,
        kinds: Mapping[str, Kind] = NOTHING,
        resize: Resize = "area",
    ) -> None:
        self.size, self.lowres_size = size, lowres_size
        self.crop = size if crop is None else crop
        self.square, self.flip, self.required, self.template = square, flip, captions == "required", template
        self.channels, self.kinds = channels, kinds
        self.paired = {name: kind for name, kind in kinds.items() if isinstance(kind, Paired)}
        self.resize = resize
        self.reduce: Literal["area", "box"] = "area" if resize == "area" else "box"  # of smaller pictures
        if not 0 < self.crop <= size:
            raise ValueError(f"size is {size} and crop {crop}; expected 0 < crop <= size")
        small = {"lowres_size": lowres_size, **{f"size of {name}": kind.size for name, kind in self.paired.items()}}
        for name, side in small.items():
            if side is not None and (side < 1 or size % side or self.crop * side % size):
                raise ValueError(
                    f"{name} is {side}; expected a divisor of size, which is {size}, "
                    f"such that crop, which is {self.crop}, covers whole low-res pixels"
                )
        self.cells = gcd(size, *(side for side in small.values() if side))  # on which the corners of windows lie
        if square not in ("center", "random") or captions not in ("required", "optional"):
            raise ValueError(
                f"square is {square!r} and captions is {captions!r}; "
                "expected 'center' or 'random', and 'required' or 'optional'"
            )
        if resize not in ("area", "bicubic"):
            raise ValueError(f"resize is {resize!r}; expected 'area' or 'bicubic'")
        if template is not None and "{}" not in template:
            raise ValueError(f"template is {template!r}; expected {{}} where the caption goes")

    def __call__(self, key: str, record: Record, rng: np.random.Generator) -> tuple[Sample, list[Note]]:
        """The sample, image (C, crop, crop), lowres (C, crop · lowres_size / size, same) or None, and fields; and its
        repairs.

        Raises:
            Unusable: why it cannot be made.
        """
        if self.required and not record.captions:
            raise Unusable("has no caption")
        fields: dict[str, Value] = {
            name: kind.read(record.fields.get(name), name, record.root)
            for name, kind in self.kinds.items()
            if not isinstance(kind, Paired)
        }
        where = 0.5 if self.square == "center" else rng.random()
        decoded = decode(record.image, record.name, self.channels)
        pixels = resize_square(cut_square(decoded.picture, where), self.size, self.resize)
        pairs, more = self._paired(record, extent(decoded.picture), where)
        small = self._small(pixels)
        flipped = self.flip and rng.random() < 0.5
        wide = self.crop * self.cells // self.size  # the window in cells
        left, top = (int(c) for c in rng.integers(self.cells - wide + 1, size=2))

        def shown(whole: Pixels) -> Tensor:
            return to_tensor(cut(mirror(whole) if flipped else whole, left, top, wide, self.cells))

        lowres = None if small is None else shown(small)
        fields.update((name, self.paired[name].finish(shown(pair))) for name, pair in pairs.items())
        notes = [Note(key, "repaired", repair) for repair in (*decoded.repairs, *more)]
        return Sample(key, shown(pixels), self._draw_caption(record.captions, rng), lowres, fields=fields), notes

    def _small(self, pixels: Pixels) -> Pixels | None:
        """The whole low-res picture."""
        if self.lowres_size is None:
            return None
        # by area, as the cascade reduces a picture that it starts from (imagen.diffusion.augmentation.resize)
        return resize_square(pixels, self.lowres_size, self.reduce)

    def _paired(self, record: Record, stored: tuple[int, int], where: float) -> tuple[dict[str, Pixels], list[str]]:
        """The whole pictures that are paired with one of the extent `stored`, and what was repaired in them."""
        pairs: dict[str, Pixels] = {}
        repairs: list[str] = []
        for name, kind in self.paired.items():
            pair = kind.decode(record.fields.get(name), name, record.root)
            (height, width), (high, wide) = stored, extent(pair.picture)
            if abs(width * high - wide * height) >= max(height, high):  # more than rounding
                raise Unusable(f"is {width} x {height} but its {name} picture {wide} x {high}: of another shape")
            if kind.resize == "nearest":
                pairs[name] = nearest_square(cut_square(pair.picture, where), kind.size)
            else:
                pairs[name] = resize_square(cut_square(pair.picture, where), kind.size, self.reduce)
            repairs += pair.repairs
        return pairs, repairs

    def _draw_caption(self, captions: tuple[str, ...], rng: np.random.Generator) -> str:
        """One of several; a single one is taken without drawing."""
        if not captions:
            return ""
        return self.phrase(captions[int(rng.integers(len(captions))) if len(captions) > 1 else 0])

    def phrase(self, caption: str) -> str:
        """A caption as training sees it: in the template."""
        return caption if self.template is None else self.template.replace("{}", caption)
