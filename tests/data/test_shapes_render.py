"""The renderer: distances and areas against geometry, crops against slices, patterns against their definition."""

from __future__ import annotations

from math import cos, pi, radians, sin, sqrt

import numpy as np
import pytest

from imagen.data.shapes.language import PATTERNS, SHAPES, sample_facts
from imagen.data.shapes.layout import Placed, Scene, place
from imagen.data.shapes.render import RING_HOLE, SDF, STAR_WAIST, render

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# areas in a bounding circle of radius 1, from school geometry
AREAS = {
    "circle": pi,
    "square": 2.0,
    "triangle": 3 * sqrt(3) / 4,
    "hexagon": 3 * sqrt(3) / 2,
    "ring": pi * (1 - RING_HOLE**2),
    "star": 5 * STAR_WAIST * sin(radians(36)),
    "cross": 5 * (2 / sqrt(10)) ** 2,
    # a square of half diagonal h and a disc of diameter sqrt(2) h; R the radius of the circle around both
    "heart": (2 + pi / 2) * ((3 - sqrt(2)) / 2) ** 2,
}


def alone(shape: str, radius: float = 0.2, pattern: str | None = None, x: float = 0.5, y: float = 0.5) -> Scene:
    return Scene((Placed(x, y, radius, WHITE, shape, pattern),), BLACK)


def scenes(count: int, plain: bool = False) -> list[Scene]:
    rng = np.random.default_rng(5)
    found: list[Scene] = []
    while len(found) < count:
        scene = place(sample_facts(rng), rng)
        if not plain or all(thing.pattern is None for thing in scene.objects):
            found.append(scene)
    return found


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def reduce4(picture: np.ndarray) -> np.ndarray:
    side = len(picture) // 4
    return picture.reshape(side, 4, side, 4, 3).mean((1, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_area_is_the_closed_form(shape: str) -> None:
    for radius, x, y in ((0.2, 0.5, 0.5), (0.11, 0.31, 0.687)):
        area = render(alone(shape, radius, x=x, y=y), 512)[..., 0].astype(np.float64).mean()
        assert area == pytest.approx(AREAS[shape] * radius**2, rel=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_is_the_distance_to_the_outline(shape: str) -> None:
    """Against brute force: the nearest of the points where the inside ends, on a fine grid."""
    axis = np.linspace(-1.2, 1.2, 481, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    signed = SDF[shape](x, y)
    inside = signed < 0
    edge = np.zeros_like(inside)
    edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    edge[1:] |= inside[1:] != inside[:-1]
    rows, columns = np.nonzero(edge)
    outline = np.stack([axis[columns], axis[rows]], -1)
    picks = np.random.default_rng(0).integers(0, len(axis), (300, 2))
    points = np.stack([axis[picks[:, 1]], axis[picks[:, 0]]], -1)
    nearest = np.sqrt(((points[:, None] - outline[None]) ** 2).sum(-1)).min(1)
    assert np.abs(np.abs(signed[picks[:, 0], picks[:, 1]]) - nearest).max() < 2 * (axis[1] - axis[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_bounding_circle_is_the_smallest(shape: str) -> None:
    axis = np.linspace(-1.2, 1.2, 1201, dtype=np.float32)
    inside = SDF[shape](axis[None, :], axis[:, None]) <= 0
    rows, columns = np.nonzero(inside)
    far = np.hypot(axis[columns], axis[rows])
    assert 0.99 < far.max() <= 1.0 + 1e-5
    heights = axis[rows][far > 0.985]  # where it touches; not all in one half, or a smaller circle would do
    assert heights.min() < 0.05
    assert heights.max() > -0.05


def extent(shape: str) -> tuple[float, float, float, float]:
    """Top, bottom, left and right of a shape on the picture, in radii from its centre (y down)."""
    rows, columns = np.nonzero(render(alone(shape, 0.4), 1000)[..., 0] > 0.5)
    return tuple((value / 1000 - 0.5) / 0.4 for value in (rows.min(), rows.max(), columns.min(), columns.max()))


def test_shapes_stand_upright() -> None:
    close = pytest.approx
    assert extent("triangle") == close((-1, 0.5, -sin(radians(60)), sin(radians(60))), abs=0.02)
    assert extent("star") == close((-1, cos(radians(36)), -sin(radians(72)), sin(radians(72))), abs=0.02)
    assert extent("square") == close((-sqrt(0.5), sqrt(0.5), -sqrt(0.5), sqrt(0.5)), abs=0.02)
    assert extent("hexagon") == close((-sqrt(0.75), sqrt(0.75), -1, 1), abs=0.02)
    widths = (render(alone("heart", 0.4), 200)[..., 0] > 0.5).sum(1)
    assert 0 < widths[widths > 0][-3:].max() < 10 < widths[widths > 0][:10].max()  # its tip points down


@pytest.mark.parametrize(("size", "crop"), [(256, 64), (1024, 256), (96, 32), (250, 50)])
def test_crop_of_a_render_is_the_render_of_the_window(size: int, crop: int) -> None:
    rng = np.random.default_rng(size)
    for scene in scenes(8):
        whole = render(scene, size)
        for left, top in [(0, 0), (size - crop, size - crop), *rng.integers(0, size - crop + 1, (4, 2)).tolist()]:
            window = (left / size, top / size, (left + crop) / size, (top + crop) / size)
            assert np.array_equal(render(scene, crop, window), whole[top : top + crop, left : left + crop])


def test_resolutions_agree_on_plain_scenes() -> None:
    for scene in scenes(20, plain=True):
        large, middle, small = (render(scene, size) for size in (1024, 256, 64))
        assert psnr(reduce4(middle), small) > 36
        assert psnr(reduce4(large), middle) > 42


def test_edges_are_antialiased_and_colours_exact() -> None:
    scene = Scene((Placed(0.5, 0.5, 0.2, (220, 40, 40), "circle"),), (20, 25, 70))
    picture = render(scene, 64)
    assert picture.dtype == np.float32
    assert picture.shape == (64, 64, 3)
    assert np.allclose(picture[32, 32] * 255, (220, 40, 40), atol=1e-4)
    assert np.allclose(picture[0, 0] * 255, (20, 25, 70), atol=1e-4)
    assert len(np.unique(picture[..., 0])) > 6  # in-between values along the edge
    half = render(Scene((Placed(0.5, 0.5, 0.25 * sqrt(2), WHITE, "square"),), BLACK), 6)  # its edge halves a pixel
    assert np.allclose(half[3, :, 0], [0, 0.5, 1, 1, 0.5, 0], atol=1e-6)


def test_every_object_is_drawn_the_later_over_the_earlier() -> None:
    places = ((0.2, (255, 0, 0)), (0.7, (0, 255, 0)), (0.8, (0, 0, 255)))
    things = [Placed(x, 0.5, 0.15, rgb, "square") for x, rgb in places]
    made = render(Scene(tuple(things), BLACK), 40)
    for at, rgb in ((0.2, (1, 0, 0)), (0.63, (0, 1, 0)), (0.75, (0, 0, 1)), (0.87, (0, 0, 1)), (0.45, (0, 0, 0))):
        assert tuple(made[20, int(at * 40)]) == rgb


def filled(
    pattern: str, size: int, window: tuple[float, float, float, float] = (0.375, 0.375, 0.625, 0.625)
) -> np.ndarray:
    """The inside of a patterned white square: ten periods by ten."""
    return render(alone("square", 0.4, pattern), size, window)[..., 0].astype(np.float64)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_half_colour_and_half_its_dark_twin(pattern: str) -> None:
    fill = filled(pattern, 1000)  # 100 px a period
    assert fill.min() == pytest.approx(0.5, abs=1e-6)
    assert fill.max() == pytest.approx(1.0, abs=1e-6)
    assert (fill > 0.75).mean() == pytest.approx(0.5, abs=0.01)
    for size in (64, 256, 1000):  # 6.4, 25.6 and 100 px a period
        assert filled(pattern, size).mean() == pytest.approx(0.75, abs=0.004)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_period_is_a_fortieth_of_the_picture(pattern: str) -> None:
    fill = filled(pattern, 100)  # 10 px a period
    assert np.allclose(fill[10:], fill[:-10], atol=1e-5)
    assert np.allclose(fill[:, 10:], fill[:, :-10], atol=1e-5)
    assert all(not np.allclose(fill[step:], fill[:-step], atol=0.1) for step in range(1, 10))


def test_what_the_patterns_look_like() -> None:
    striped, dotted, checkered = (filled(pattern, 100) for pattern in ("striped", "dotted", "checkered"))
    assert np.allclose(striped, striped[:, :1])  # stripes lie flat
    assert np.allclose(dotted, dotted.T, atol=1e-5)
    assert dotted[5, 5] == 0.5  # a dark dot in the middle of the first cell, light between the dots
    assert dotted[0, 0] == 1.0
    assert np.allclose(checkered[5:], 1.5 - checkered[:-5], atol=1e-5)  # half a period on, light and dark change places


def test_a_fine_pattern_is_drawn_as_its_mean() -> None:
    plain = render(alone("star", 0.2), 64)
    for size, drawn in ((64, False), (119, False), (120, True), (256, True)):
        pictures = [render(alone("star", 0.2, pattern), size) for pattern in PATTERNS]
        assert all(np.array_equal(pictures[0], other) != drawn for other in pictures[1:])
    assert np.allclose(render(alone("star", 0.2, "dotted"), 64), 0.75 * plain, atol=1e-6)
    # what counts is pixels per period, not the picture's size: a window of a 1024-px picture shows the pattern
    assert not np.allclose(filled("striped", 64), 0.75)


def test_pattern_phase_repeats_in_every_eighth_of_the_picture() -> None:
    fills = [filled("dotted", 32, (k / 8, k / 8, k / 8 + 0.125, k / 8 + 0.125)) for k in (3, 4)]
    assert np.allclose(fills[0], fills[1], atol=1e-5)


@pytest.mark.parametrize(
    ("size", "window"), [(0, (0, 0, 1, 1)), (8, (0, 0, 1, 0.5)), (8, (0.5, 0.5, 0.4, 0.4)), (8, (0.5, 0, 1.5, 1))]
)
def test_a_bad_window_is_refused(size: int, window: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        render(alone("circle"), size, window)


def test_an_unknown_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="'plaid'"):
        render(alone("circle", pattern="plaid"), 256)
