"""Which of the eight shapes a soft mask shows, by comparison with outlines drawn here.

The outlines are this module's own reading of the shape names (an upright star stands on two points, a cross is a plus,
...); the renderer's are not consulted. Where a name leaves proportions open (how fat a star is, how thick a ring),
several are drawn. Known wrong outlines (an inverted triangle, a diamond, an X) are drawn too and match as no shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = list[tuple[float, float]]
Floats = NDArray[np.floating]

_CANVAS = 512
_RADIUS = 200.0  # of the bounding circle on the canvas
_MATCH_PX = 28  # masks wider than about twice this are reduced before they are compared
_MAX_MISMATCH = 0.16  # of the mask's squared norm


@dataclass(frozen=True)
class Template:
    """One outline, its bounding circle at the origin with radius 1 (x right, y down).

    ``sums[i, j]`` counts its pixels above row i and left of column j on a canvas where the radius is ``_RADIUS`` px;
    ``area`` and ``centroid`` are in units of the radius. ``shape`` is None for an outline that is none of the eight.
    """

    shape: str | None
    sums: NDArray[np.int64]
    area: float
    centroid: tuple[float, float]


@dataclass(frozen=True)
class ShapeMatch:
    """The best outline for a mask: its shape (None if nothing fits), bounding circle in pixels, and the misfit."""

    shape: str | None
    center: tuple[float, float]
    radius: float
    mismatch: float


def _regular(corners: int, first_degrees: float) -> Points:
    angles = [math.radians(first_degrees + 360.0 * k / corners) for k in range(corners)]
    return [(math.cos(a), math.sin(a)) for a in angles]


def _star(inner: float, first_degrees: float = -90.0) -> Points:
    tips = _regular(10, first_degrees)
    return [(x, y) if k % 2 == 0 else (inner * x, inner * y) for k, (x, y) in enumerate(tips)]


def _plus(half_width: float) -> Points:
    w, e = half_width, math.sqrt(1.0 - half_width**2)
    return [(-w, -e), (w, -e), (w, -w), (e, -w), (e, w), (w, w), (w, e), (-w, e), (-w, w), (-e, w), (-e, -w), (-w, -w)]


def _rotated(points: Points, degrees: float) -> Points:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(c * x - s * y, s * x + c * y) for x, y in points]


def _fitted(points: Points) -> Points:
    """Move and scale so that the smallest circle around the points (to 0.1 %) is the unit circle."""
    p = np.asarray(points)
    center = p.mean(axis=0)
    for k in range(1, 2000):  # Badoiu and Clarkson: step towards the farthest point by 1/(k+1)
        center += (p[np.argmax(((p - center) ** 2).sum(axis=1))] - center) / (k + 1)
    p = (p - center) / np.sqrt(((p - center) ** 2).sum(axis=1).max())
    return [(float(x), float(y)) for x, y in p]


def _lobed_heart(lobe: float) -> Points:
    """Two half discs of radius ``lobe`` over a wedge that ends in a point below."""
    turn = np.linspace(math.pi, 2 * math.pi, 40)
    discs = [(side * lobe + lobe * math.cos(a), lobe * math.sin(a)) for side in (-1, 1) for a in turn]
    return _fitted([*discs, (0.0, 1.0)])


def _tilted_square_heart() -> Points:
    """A square on its corner with a half disc on each upper side."""
    h = math.sqrt(0.5)
    turn = np.linspace(0.0, math.pi, 40)
    right = [(h / 2 + 0.5 * math.cos(a - math.pi * 0.75), -h / 2 + 0.5 * math.sin(a - math.pi * 0.75)) for a in turn]
    left = [(-x, y) for x, y in reversed(right)]
    return _fitted([*left, *right, (h, 0.0), (0.0, h), (-h, 0.0)])


def _curved_heart() -> Points:
    """The well-known curve x = 16 sin^3, y = 13 cos - 5 cos 2 - 2 cos 3 - cos 4."""
    turn = np.linspace(0.0, 2 * math.pi, 120, endpoint=False)
    x = 16 * np.sin(turn) ** 3
    y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return _fitted([(float(a), float(-b)) for a, b in zip(x, y, strict=True)])


def _template(shape: str | None, outline: Points, hole: float = 0.0) -> Template:
    image = Image.new("L", (_CANVAS, _CANVAS))
    draw, mid = ImageDraw.Draw(image), _CANVAS / 2
    draw.polygon([(mid + _RADIUS * x - 0.5, mid + _RADIUS * y - 0.5) for x, y in outline], fill=1)
    if hole:
        r = hole * _RADIUS
        draw.ellipse((mid - r - 0.5, mid - r - 0.5, mid + r - 0.5, mid + r - 0.5), fill=0)
    canvas = np.asarray(image, dtype=np.int64)
    y, x = np.nonzero(canvas)
    centroid = (float((x.mean() + 0.5 - mid) / _RADIUS), float((y.mean() + 0.5 - mid) / _RADIUS))
    sums = np.pad(canvas.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    return Template(shape, sums, y.size / _RADIUS**2, centroid)


@cache
def templates() -> tuple[Template, ...]:
    """All outlines, drawn once."""
    circle, square, triangle = _regular(120, 0.0), _regular(4, 45.0), _regular(3, -90.0)
    drawn = [
        _template("circle", circle),
        _template("square", square),
        _template("triangle", triangle),
        *(_template("star", _star(inner)) for inner in (0.38, 0.45, 0.52)),
        *(_template("heart", _lobed_heart(lobe)) for lobe in (0.45, 0.55)),
        _template("heart", _tilted_square_heart()),
        _template("heart", _curved_heart()),
        *(_template("hexagon", _regular(6, first)) for first in (0.0, 30.0)),
        *(_template("ring", circle, hole) for hole in (0.45, 0.55, 0.65)),
        *(_template("cross", _plus(w)) for w in (0.22, 0.3, 0.38)),
    ]
    turned = [*((triangle, by) for by in (180, 90, -90)), (square, 45), (_plus(0.3), 45), (_star(0.45), 180)]
    wrong = [_rotated(outline, degrees) for outline, degrees in [*turned, (_curved_heart(), 180)]]
    wrong += [
        _fitted([(wide * x, high * y) for x, y in outline])
        for outline, by in ((square, 1.7), (circle, 1.6))
        for wide, high in ((by, 1.0), (1.0, by))
    ]
    return tuple(drawn + [_template(None, outline) for outline in wrong])


def _reduced(mask: Floats) -> tuple[Floats, int]:
    """Average blocks so that the longer side is at most 2 * _MATCH_PX; returns the block size too."""
    block = max(1, math.ceil(max(mask.shape) / (2 * _MATCH_PX)))
    if block == 1:
        return mask, 1
    h, w = (math.ceil(n / block) * block for n in mask.shape)
    padded = np.zeros((h, w))
    padded[: mask.shape[0], : mask.shape[1]] = mask
    return padded.reshape(h // block, block, w // block, block).mean(axis=(1, 3)), block


def _coverage(template: Template, size: tuple[int, int], center: tuple[float, float], radius: float) -> Floats:
    """The template's share of every pixel of a (h, w) grid, with its bounding circle at ``center``."""
    scale, mid = _RADIUS / radius, _CANVAS / 2
    rows, cols = (
        np.clip(np.rint((np.arange(n + 1) - c) * scale + mid), 0, _CANVAS).astype(np.intp)
        for n, c in zip(size, reversed(center), strict=True)
    )
    sums = template.sums[np.ix_(rows, cols)]
    pixel = np.maximum(np.diff(rows)[:, None] * np.diff(cols), 1)
    return (sums[1:, 1:] - sums[:-1, 1:] - sums[1:, :-1] + sums[:-1, :-1]) / pixel


def match_shape(mask: Floats) -> ShapeMatch:
    """Match a soft mask (H, W) in [0, 1] of one object, pixel edges at integers, against every outline.

    Each outline is given the mask's area and centroid; what is compared is the squared difference of coverages.
    """
    small, block = _reduced(mask)
    total = float(small.sum())
    cy = float(((np.arange(small.shape[0]) + 0.5) @ small.sum(axis=1)) / total)
    cx = float(((np.arange(small.shape[1]) + 0.5) @ small.sum(axis=0)) / total)
    norm = float((small**2).sum())
    matches = []
    for template in templates():
        radius = math.sqrt(total / template.area)
        center = (cx - radius * template.centroid[0], cy - radius * template.centroid[1])
        mismatch = float(((small - _coverage(template, small.shape, center, radius)) ** 2).sum()) / norm
        place = (center[0] * block, center[1] * block)
        matches.append(ShapeMatch(template.shape, place, radius * block, mismatch))
    best = min(matches, key=lambda match: match.mismatch)
    return best if best.mismatch <= _MAX_MISMATCH else replace(best, shape=None)
