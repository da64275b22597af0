"""The steps of the detector, each against geometry or a published value."""

from __future__ import annotations

from math import pi, radians, sin, sqrt

import numpy as np
import pytest

from imagen.data.shapes import language
from imagen.evaluation import detector
from imagen.evaluation.detector import _border, _disk, _interior, _nearest, _pattern, _pixels, _plane, _segment, to_lab
from imagen.evaluation.templates import _MATCH_PX, _coverage, _fitted, _reduced, _rotated, match_shape, templates


def test_its_colours_are_those_of_the_world() -> None:
    assert detector.COLORS == language.COLORS
    assert detector.BACKGROUNDS == language.BACKGROUNDS


def test_lab_of_the_corners_of_srgb() -> None:
    """The usual table for D65 (Lindbloom)."""
    known = {
        (255, 255, 255): (100, 0, 0), (0, 0, 0): (0, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.73, -86.18, 83.18), (0, 0, 255): (32.30, 79.19, -107.86), (119, 119, 119): (50.03, 0, 0),
        (5, 5, 5): (1.37, 0, 0),
    }  # fmt: skip
    found = to_lab(np.array([[rgb] for rgb in known]))
    assert found.shape == (len(known), 1, 3)
    np.testing.assert_allclose(found[:, 0], list(known.values()), atol=0.06)


def test_the_nearest_colour_is_named_within_its_limit_in_any_shade() -> None:
    table = {"dark": (40, 40, 40), "light": (200, 200, 200)}
    away = float(to_lab(np.array([46, 46, 46]))[0] - to_lab(np.array([40, 40, 40]))[0])
    for rgb, limit, shades, name in (
        ((46, 46, 46), away + 0.01, (1.0,), "dark"),
        ((46, 46, 46), away - 0.01, (1.0,), None),
        ((190, 190, 190), 99.0, (1.0,), "light"),
        ((100, 100, 100), 0.1, (1.0, 0.5), "light"),
        ((100, 100, 100), 0.1, (0.5, 1.0), "light"),
        ((100, 100, 100), 0.1, (1.0,), None),
        ((20, 20, 20), 0.1, (1.0, 0.5), "dark"),
    ):
        assert _nearest(np.array(rgb), table, limit, shades) == name  # type: ignore[arg-type]


@pytest.mark.parametrize(("side", "width"), [(64, 1), (256, 4)])
def test_the_border_is_a_64th_of_the_side(side: int, width: int) -> None:
    border = _border(side)
    assert border.shape == (side, side)
    assert not border[width:-width, width:-width].any()
    assert border.sum() == side**2 - (side - 2 * width) ** 2


@pytest.mark.parametrize(("radius", "count"), [(1, 5), (2.0, 13), (2.9, 25), (3, 29)])
def test_a_disk_has_the_pixels_within_its_radius(radius: float, count: int) -> None:
    assert _disk(radius).sum() == count
    assert np.array_equal(_disk(radius), _disk(radius)[::-1].T)


@pytest.mark.parametrize("side", [64, 256])
def test_the_background_is_the_plane_through_the_border_s_colours_but_what_sticks_out(side: int) -> None:
    y, x = np.mgrid[:side, :side] / side - 0.5
    plane = np.stack([100 + 12 * x, 80 - 9 * y, 60 + 5 * x + 7 * y], axis=-1)
    picture = plane.copy()
    picture[side // 4 : side // 2, side // 4 : side // 2] = 255
    picture[:, : side // 16][: side // 8] = (0, 255, 0)  # an object that reaches over the border
    np.testing.assert_allclose(_plane(picture.astype(np.float32)), plane, atol=0.02)


def test_what_is_like_the_border_in_one_channel_alone_is_no_background() -> None:
    colors = np.full((64, 64, 3), 100, np.float32)
    colors[0, :20] = (100, 100, 200)  # an object that reaches into the border
    assert np.abs(_plane(colors) - 100).max() < 1e-3


def test_pictures_are_judged_at_64_or_256_px_by_means() -> None:
    for given, side in ((64, 64), (100, 64), (128, 64), (191, 64), (192, 256), (256, 256), (300, 256), (1024, 256)):
        pixels = np.random.default_rng(given).integers(0, 256, (given, given, 3), dtype=np.uint8)
        made = _pixels(pixels)
        assert made.shape == (side, side, 3)
        assert made.mean() == pytest.approx(pixels.mean(), abs=1.0)
        if given % side == 0:
            block = given // side
            means = pixels.reshape(side, block, side, block, 3).mean((1, 3))
            assert np.abs(made - means).max() <= 0.51
    assert np.array_equal(_pixels(np.full((64, 64, 3), 0.5)), np.full((64, 64, 3), 128))
    assert np.array_equal(_pixels(np.full((64, 64, 3), 1.7)), np.full((64, 64, 3), 255))
    for bad in ((63, 63, 3), (64, 65, 3), (65, 64, 3)):
        with pytest.raises(ValueError, match=f"picture is {bad[1]}x{bad[0]} px; expected a square of 64 px or more"):
            _pixels(np.zeros(bad))
    for bad in ((64, 64), (64, 64, 1), (1, 64, 64, 3)):
        with pytest.raises(ValueError, match=r"expected \(H, W, 3\)"):
            _pixels(np.zeros(bad))


@pytest.mark.parametrize("side", [64, 256])
def test_objects_are_what_stands_out_enough_over_enough_pixels(side: int) -> None:
    least = 0.0006 * side**2
    distance = np.zeros((side, side), np.float32)
    wide = int(sqrt(least)) + 1
    for number, (level, size) in enumerate([(50, 3 * wide), (50, wide), (9.9, 3 * wide), (50, wide // 2)]):
        top = 4 + number * side // 4
        distance[top : top + size, side // 2 : side // 2 + size] = level
    labels = _segment(distance)
    assert set(np.unique(labels)) == {0, 1, 2}, "not one too faint to start an object, and not one that is a speckle"
    assert (labels[4 + 1, side // 2 + 1], labels[4 + side // 4 + 1, side // 2 + 1]) == (1, 2)
    assert abs((labels == 1).sum() - (3 * wide) ** 2) <= 12


def test_the_interior_is_away_from_the_edge_as_far_as_it_can_be() -> None:
    own = np.zeros((40, 40), bool)
    own[5:35, 5:35] = True
    for widest in (1, 3):
        inner = _interior(own, np.ones((40, 40)), widest)
        assert inner.sum() == (30 - 2 * widest) ** 2
        assert inner[5 + widest, 20]
        assert not inner[5 + widest - 1, 20]
    thin = np.zeros((40, 40), bool)
    thin[10:12, 5:35] = True
    distance = np.zeros((40, 40)) + np.arange(40)
    assert np.array_equal(_interior(thin, distance, 3), thin & (np.arange(40) >= 26)), "the farthest three in ten"


@pytest.mark.parametrize("pattern", ["plain", "striped", "dotted", "checkered"])
def test_patterns_are_told_by_where_their_spectrum_peaks(pattern: str) -> None:
    side = 256
    x, y = np.meshgrid(*[(np.arange(side) + 0.5) / side * 2 * pi * detector.PERIODS] * 2)
    tone = {"plain": 0 * x, "striped": np.cos(y), "dotted": np.cos(x) + np.cos(y), "checkered": np.cos(x) * np.cos(y)}
    rgb = np.array([1.0, 0.5, 0.2]) * (150 + 40 * tone[pattern])[..., None]
    interior = np.zeros((side, side), bool)
    interior[60:130, 90:190] = True
    assert _pattern(rgb, interior, side) == pattern
    faint = np.array([1.0, 0.5, 0.2]) * (150 + 5 * tone[pattern])[..., None]
    assert _pattern(faint, interior, side) == "plain"
    few = np.zeros((side, side), bool)
    few[60:67, 90:98] = True  # 56 pixels
    assert _pattern(rgb, few, side) == "plain"


AREAS = {"circle": [pi], "square": [2], "triangle": [3 * sqrt(3) / 4], "hexagon": [3 * sqrt(3) / 2] * 2}
AREAS |= {"star": [5 * inner * sin(radians(36)) for inner in (0.38, 0.45, 0.52)]}
AREAS |= {"ring": [pi * (1 - hole**2) for hole in (0.45, 0.55, 0.65)]}
AREAS |= {"cross": [8 * w * sqrt(1 - w**2) - 4 * w**2 for w in (0.22, 0.3, 0.38)]}


def test_outlines_have_the_areas_of_their_shapes() -> None:
    drawn: dict[str | None, list[float]] = {}
    for template in templates():
        drawn.setdefault(template.shape, []).append(template.area)
        if template.shape in (*AREAS, "cross"):
            assert template.centroid == pytest.approx((0, 0), abs=0.005)
        assert template.sums[-1, -1] == pytest.approx(template.area * 200**2)
    assert {shape: pytest.approx(areas, rel=0.02) for shape, areas in AREAS.items()} == {s: drawn[s] for s in AREAS}
    assert len(drawn["heart"]) == 4
    assert len(drawn[None]) == 11


@pytest.mark.parametrize("radius", [9.0, 40.0])
def test_every_outline_is_found_where_it_was_drawn(radius: float) -> None:
    size, center = (90, 100), (47.3, 44.8)  # x, y
    for template in templates():
        mask = _coverage(template, size, center, radius)
        assert 0 <= mask.min() <= mask.max() <= 1
        assert mask.sum() == pytest.approx(template.area * radius**2, rel=0.03)
        found = match_shape(mask)
        assert found.shape == template.shape
        assert found.center == pytest.approx(center, abs=0.06 * radius)
        assert found.radius == pytest.approx(radius, rel=0.06)
        assert found.mismatch < 0.03
    assert match_shape(np.random.default_rng(0).random((40, 40))).shape is None


def test_a_mask_is_reduced_by_means_and_what_sticks_out_is_empty() -> None:
    limit = 2 * _MATCH_PX
    same = np.random.default_rng(0).random((limit, limit - 3))
    assert _reduced(same) == (pytest.approx(same), 1)
    small, block = _reduced(np.ones((limit + 1, 7)))
    assert (small.shape, block) == ((limit // 2 + 1, 4), 2)
    assert small[0].tolist() == [1, 1, 1, 0.5]
    assert small[-1].tolist() == [0.5, 0.5, 0.5, 0.25]


def test_points_are_fitted_into_the_unit_circle_and_turned_clockwise_as_y_points_down() -> None:
    fitted = np.array(
        _fitted([(10.0, 4.0), (14.0, 4.0), (12.0, 5.0)])
    )  # an obtuse triangle: its long side is a diameter
    np.testing.assert_allclose(fitted, [[-1, 0], [1, 0], [0, 0.5]], atol=0.01)
    assert _rotated([(1.0, 0.0)], 90)[0] == pytest.approx((0, 1))
