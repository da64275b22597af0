"""Captions under pictures, for grids to look at. The font is Pillow's own, so that a grid looks the same everywhere."""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import Image, ImageDraw, ImageFont

LINES = 4
LEAST_WIDTH = 128  # below, no caption can be read: pictures are enlarged
SMALLEST, PER_LINE, MARGIN = 11, 20, 2  # font size; the width divided by it, where pictures are large; pixels around
_PLAIN = {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "“": '"', "”": '"', "‘": "'", "’": "'", "–": "-"}


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@cache
def _has(character: str) -> bool:
    """Whether the font has it: what it lacks, it draws as it draws a code point that is no character."""
    font = _font(SMALLEST)
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


def drawable(text: str) -> str:
    """``text`` on one line in characters that the font has.

    Of a letter with an accent the letter is left; what has no such likeness is written as its code point, \\u661f, so
    that captions in any script differ where they differ.
    """
    found = ""
    for character in unicodedata.normalize("NFC", " ".join(text.split())):
        plain = unicodedata.normalize("NFKD", _PLAIN.get(character, character))
        kept = "".join(one for one in plain if not unicodedata.combining(one))
        if _has(character):
            found += character
        elif kept and all(map(_has, kept)):
            found += kept
        else:
            found += character.encode("ascii", "backslashreplace").decode()
    return found


def wrapped(text: str, width: int, size: int, lines: int = LINES) -> list[str]:
    """``text`` in at most ``lines`` lines of ``width`` pixels; an ellipsis ends the last one where more would follow.

    A word that is longer than a line is broken.
    """
    font = _font(size)
    found: list[str] = []
    rest = drawable(text)
    while rest and len(found) < lines:
        mark = "" if len(found) < lines - 1 or font.getlength(rest) <= width else "…"
        count = max(1, _fitting(rest, width - font.getlength(mark), font))
        space = rest.rfind(" ", 0, count + 1) if count < len(rest) else len(rest)
        count = space if space > 0 else count
        found.append(rest[:count] + mark)
        rest = rest[count:].lstrip()
    return found


def _fitting(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """How many of the first characters fit."""
    return next((n for n in range(1, len(text) + 1) if font.getlength(text[:n]) > width), len(text) + 1) - 1


def strip(text: str, width: int) -> Image.Image:
    """A caption as a white strip, ``width`` pixels wide and as high as :data:`LINES` lines, however many there are."""
    size = max(SMALLEST, width // PER_LINE)
    step = size + size // 5
    made = Image.new("RGB", (width, LINES * step + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(made)
    for number, line in enumerate(wrapped(text, width - 2 * MARGIN, size)):
        draw.text((MARGIN, MARGIN + number * step), line, fill="black", font=_font(size))
    return made


def enlargement(width: int) -> int:
    """How many times a picture is repeated in each direction, so that its caption can be read."""
    return -(-LEAST_WIDTH // width)


def captioned(image: Image.Image, text: str | None) -> Image.Image:
    """A picture, its pixels repeated where it is small, with its caption beneath it; None: a model without text."""
    times = enlargement(image.width)
    shown = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    if text is None:
        return shown
    below = strip(text, shown.width)
    made = Image.new("RGB", (shown.width, shown.height + below.height), "white")
    made.paste(shown)
    made.paste(below, (0, shown.height))
    return made
