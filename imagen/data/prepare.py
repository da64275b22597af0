"""One stored picture made into a sample: decoded, cut, resized, captioned."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .decode import Pixels, Unusable, decode
from .embedding import read_embedding
from .records import Record
from .sources import Note, Sample
from .transforms import Resize, Square, cut, cut_square, extent, mirror, resize_square, to_tensor


class Prepare:
    """Callable: a record and randomness -> a sample.

    A picture is decoded (:func:`imagen.data.decode.decode`), cut to its largest square and resized to ``size``
    (a smaller picture is enlarged).

    Args:
        size: side of the whole picture in pixels.
        crop: side in pixels of a random window of the picture; None gives the whole picture.
        lowres_size: side of the low-res picture, must divide ``size``: samples then hold ``lowres``, over the same
            window, whose corner falls on a low-res pixel. It is the record's conditioning picture or, without one, the
            picture itself made small.
        square: where a picture that is not square is cut, ``"center"`` or ``"random"``.
        flip: mirror half of the pictures. Off by default: captions may name left and right.
        captions: ``"required"``: an item without a caption is skipped; ``"optional"``: its caption is empty.
        template: with ``{}`` where the caption (a class name, say) goes; None leaves captions alone.
        channels, lowres_channels: of ``image`` and of ``lowres``.
        resize: ``"area"``: means over areas, and bicubic where a picture is enlarged; ``"bicubic"``: PIL's bicubic in
            both directions, and its box for the low-res picture, which is another reduction of the same original.
        text: most tokens and width of the records' encoded texts, which samples then hold; None: they have none.

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
        lowres_channels: int = 3,
        text: tuple[int, int] | None = None,
        resize: Resize = "area",
    ) -> None:
        self.size, self.lowres_size = size, lowres_size
        self.crop = size if crop is None else crop
        self.square, self.flip, self.required, self.template = square, flip, captions == "required", template
        self.channels, self.lowres_channels, self.text = channels, lowres_channels, text
        self.resize = resize
        if not 0 < self.crop <= size:
            raise ValueError(f"size is {size} and crop {crop}; expected 0 < crop <= size")
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
        if resize not in ("area", "bicubic"):
            raise ValueError(f"resize is {resize!r}; expected 'area' or 'bicubic'")
        if template is not None and "{}" not in template:
            raise ValueError(f"template is {template!r}; expected {{}} where the caption goes")

    def __call__(self, key: str, record: Record, rng: np.random.Generator) -> tuple[Sample, list[Note]]:
        """The sample, image (C, crop, crop) and lowres (C, crop · lowres_size / size, same) or None; and its repairs.

        Raises:
            Unusable: why it cannot be made.
        """
        if self.required and not record.captions:
            raise Unusable("has no caption")
        embedding = None if self.text is None else read_embedding(record.embedding, *self.text)
        where = 0.5 if self.square == "center" else rng.random()
        decoded = decode(record.image, record.name, self.channels)
        pixels = resize_square(cut_square(decoded.picture, where), self.size, self.resize)
        small, more = self._small(record, extent(decoded.picture), pixels, where)
        if self.flip and rng.random() < 0.5:
            pixels, small = mirror(pixels), None if small is None else mirror(small)
        cells = self.lowres_size or self.size
        wide = self.crop * cells // self.size  # the window in low-res pixels
        left, top = (int(c) for c in rng.integers(cells - wide + 1, size=2))
        image = to_tensor(cut(pixels, left, top, wide, cells))
        lowres = None if small is None else to_tensor(cut(small, left, top, wide, cells))
        notes = [Note(key, "repaired", repair) for repair in (*decoded.repairs, *more)]
        return Sample(key, image, self._draw_caption(record.captions, rng), lowres, embedding=embedding), notes

    def _small(
        self, record: Record, stored: tuple[int, int], pixels: Pixels, where: float
    ) -> tuple[Pixels | None, tuple[str, ...]]:
        """The whole low-res picture, and what was repaired in the conditioning picture it comes from."""
        if self.lowres_size is None:
            return None, ()
        kernel: Literal["area", "box"] = "area" if self.resize == "area" else "box"
        if record.conditioning is None:
            return resize_square(pixels, self.lowres_size, kernel), ()
        pair = decode(record.conditioning, "", self.lowres_channels)
        (height, width), (high, wide) = stored, extent(pair.picture)
        if abs(width * high - wide * height) >= max(height, high):  # more than rounding
            raise Unusable(f"is {width} x {height} but its conditioning picture {wide} x {high}: of another shape")
        small = resize_square(cut_square(pair.picture, where), self.lowres_size, kernel)
        return small, tuple(f"conditioning picture: {repair}" for repair in pair.repairs)

    def _draw_caption(self, captions: tuple[str, ...], rng: np.random.Generator) -> str:
        """One of several; a single one is taken without drawing."""
        if not captions:
            return ""
        return self.phrase(captions[int(rng.integers(len(captions))) if len(captions) > 1 else 0])

    def phrase(self, caption: str) -> str:
        """A caption as training sees it: in the template."""
        return caption if self.template is None else self.template.replace("{}", caption)
