"""Captions under pictures: what the font cannot draw, where lines break, and that no pixel of a picture changes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from imagen.captions import LINES, captioned, drawable, enlargement, strip, wrapped

LONG = "a caption about many things that goes on and on until somebody stops it, which takes a while, as everyone knows"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red\n  circle", "a red circle"),
        ("ein grüner Stern, groß", "ein gruner Stern, gross"),
        ("a 星", "a \\u661f"),
        ("\u2067🌟", "\\u2067\\U0001f31f"),
        ("u\u0308 \u0301", "u \\u0301"),
        ("", ""),
    ],
)
def test_what_the_font_lacks_is_likened_or_named(text: str, shown: str) -> None:
    assert drawable(text) == shown


def test_different_captions_look_different_in_any_script() -> None:
    made = {strip(text, 128).tobytes() for text in ("星", "月", "א", "Ж", "", "□")}
    assert len(made) == 6


@pytest.mark.parametrize("text", [LONG, "x" * 300, "a " + "y" * 300, "星" * 60])
@pytest.mark.parametrize("width", [40, 124])
def test_lines_fit_are_few_and_the_last_says_that_more_would_follow(text: str, width: int) -> None:
    lines = wrapped(text, width, 11)
    font = ImageFont.load_default(11)
    assert len(lines) == LINES
    assert all(font.getlength(line) <= width for line in lines)
    assert [line.endswith("…") for line in lines] == [False, False, False, True]
    words = drawable(text).replace(" ", "")
    assert words.startswith("".join(lines).replace(" ", "").rstrip("…")), "nothing is left out before the end"


def test_words_stay_whole_and_a_text_that_fits_has_no_ellipsis() -> None:
    assert wrapped(LONG, 1000, 11) == [LONG]
    lines = wrapped(LONG, 260, 11)
    assert " ".join(lines) == LONG
    assert wrapped("", 100, 11) == []


@pytest.mark.parametrize(("side", "times"), [(8, 16), (64, 2), (100, 2), (128, 1), (256, 1)])
def test_no_pixel_changes_and_the_strip_is_as_high_for_any_caption(side: int, times: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    assert enlargement(side) == times
    image = Image.fromarray(pixels)
    short, long, none = (captioned(image, text) for text in ("a", LONG, None))
    assert short.size == long.size
    for made in (short, long, none):
        assert np.array_equal(np.asarray(made)[: side * times], pixels.repeat(times, 0).repeat(times, 1))
    assert none.height == side * times
    assert (np.asarray(long)[side * times :] < 100).any()
