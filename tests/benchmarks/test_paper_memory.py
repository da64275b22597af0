"""The paper's 1024 px network fits a small card, and its memory grows with the pixels and not faster."""

from __future__ import annotations

from benchmarks.if_memory import GB
from benchmarks.paper_memory import measured


def test_a_picture_of_1024_px_needs_less_than_8_gb_and_larger_ones_as_much_more_as_they_have_pixels() -> None:
    (held, made), (_, half), (_, wide) = (measured(*sides) for sides in ((1024, 1024), (512, 512), (1536, 1024)))
    assert held + made < 8 * GB
    assert held + wide < 8 * GB
    assert 0.99 < made / half / 4 < 1.01
    assert 0.99 < wide / made / 1.5 < 1.01
    assert made > 2 * 1024 * 1024 * 128 * 2 * 2, "what comes in and goes out of a layer at full size is counted"
