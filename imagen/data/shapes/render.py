"""Draw a scene at any resolution or crop window from anti-aliased signed-distance functions.

Pixel centres lie on one grid for the whole picture and everything is computed element by element, so a crop of a large
render **equals** (bit for bit) the render of that window. Positions are in units of the picture's side, y down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, cos, floor, pi, radians, sin, sqrt

import numpy as np
from numpy.typing import NDArray

from .layout import Placed, Scene

Array = NDArray[np.floating]  # float32 throughout; float64 for positions
Window = tuple[float, float, float, float]

WHOLE: Window = (0.0, 0.0, 1.0, 1.0)
PERIOD = 1 / 40  # of a pattern, in units of the picture's side
LEAST_PERIOD = 3.0  # pixels; a finer pattern is drawn as its mean
TWIN = 0.5  # brightness of the pattern's dark half

RING_HOLE = 0.55  # inner radius / outer radius
STAR_WAIST = 0.45  # inner radius / outer radius
# The heart is a square on its tip with a half-disc on each upper side. In units of the square's half diagonal its
# bounding circle is centred HEART_RADIUS above the tip; sqrt(1/4 + (3/2 - R)^2) + sqrt(1/2) = R gives R:
HEART_RADIUS = 2 / (3 - sqrt(2))


# --- signed distances: x to the right, y UP, bounding circle of radius 1; negative inside -----------------------------


def _circle(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y) - 1.0


def _ring(x: Array, y: Array) -> Array:
    middle, half_width = (1 + RING_HOLE) / 2, (1 - RING_HOLE) / 2
    return np.abs(np.sqrt(x * x + y * y) - middle) - half_width


def _heart(x: Array, y: Array) -> Array:
    x, y = np.abs(x) * HEART_RADIUS, (y + 1) * HEART_RADIUS  # the tip at the origin, the notch at (0, 2)
    lobe = np.sqrt((x - 0.5) ** 2 + (y - 1.5) ** 2) - sqrt(0.5)
    along = np.clip((x + y) * 0.5, 0.0, 1.0)
    side = np.sqrt((x - along) ** 2 + (y - along) ** 2)
    notch = np.sqrt(x * x + (y - 2) ** 2)
    below = np.minimum(side, notch) * np.where(y > x, -1.0, 1.0).astype(np.float32)
    return np.where(x + y > 2, lobe, below) / np.float32(HEART_RADIUS)


def _polygon(chain: Sequence[tuple[float, float]]) -> Callable[[Array, Array], Array]:
    """Distance to a polygon symmetric in x, given its right half as a chain of corners from axis to axis."""

    def distance(x: Array, y: Array) -> Array:
        x = np.abs(x)
        nearest = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf, np.float32)
        inside = np.zeros(nearest.shape, bool)
        for (ax, ay), (bx, by) in pairwise(chain):
            ex, ey = bx - ax, by - ay
            px, py = x - ax, y - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
            nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
            if ey != 0:  # a ray to the right crosses this edge
                inside ^= ((ay > y) != (by > y)) & (px < py * (ex / ey))
        return np.sqrt(nearest) * np.where(inside, np.float32(-1), np.float32(1))

    return distance


def _corner(degrees_from_top: float, radius: float = 1.0) -> tuple[float, float]:
    return radius * sin(radians(degrees_from_top)), radius * cos(radians(degrees_from_top))


_A, _B = 3 / sqrt(10), 1 / sqrt(10)  # of the cross, half its length and half its width: five equal squares
SDF: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _polygon([(0, sqrt(0.5)), (sqrt(0.5), sqrt(0.5)), (sqrt(0.5), -sqrt(0.5)), (0, -sqrt(0.5))]),
    "triangle": _polygon([(0, 1), _corner(120), (0, -0.5)]),
    "star": _polygon([_corner(36 * k, STAR_WAIST if k % 2 else 1.0) for k in range(6)]),
    "heart": _heart,
    "hexagon": _polygon([(0, sqrt(0.75)), _corner(30), _corner(90), _corner(150), (0, -sqrt(0.75))]),
    "ring": _ring,
    "cross": _polygon([(0, _A), (_B, _A), (_B, _B), (_A, _B), (_A, -_B), (_B, -_B), (_B, -_A), (0, -_A)]),
}


# --- pictures ---------------------------------------------------------------------------------------------------------


def render(scene: Scene, size: int, window: Window = WHOLE) -> Array:
    """Draw the square ``window`` = (x0, y0, x1, y1) of the scene on ``size`` × ``size`` pixels.

    A pixel's colour is mixed by how much of it an object covers, taken from the signed distance at its centre
    (exact for an edge along an axis). Of a patterned object one half of the area has the object's colour and the other
    half that colour at half brightness, at a period of 1/40 of the picture; a period that spans fewer than 3 pixels is
    drawn as the mean of the two. The pattern is fixed to the picture, not to the object, and has whole periods in an
    eighth of the picture.

    Returns:
        (size, size, 3) float32 in [0, 1], a view of planes (3, size, size).

    Raises:
        ValueError: the window is not a square inside the picture, or ``size`` is not positive.
    """
    x0, y0, x1, y1 = window
    if size < 1:
        raise ValueError(f"size is {size}; expected at least 1 pixel")
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and abs((x1 - x0) - (y1 - y0)) < 1e-9):
        raise ValueError(f"window is {window}; expected a square (x0, y0, x1, y1) inside (0, 0, 1, 1)")
    pitch = float(_snap((x1 - x0) / size))
    xs, ys = (_snap(start + (np.arange(size) + 0.5) * ((x1 - x0) / size)) for start in (x0, y0))
    planes = np.empty((3, size, size), np.float32)
    planes[:] = _unit(scene.background)
    for thing in scene.objects:
        _draw(planes, thing, xs, ys, pitch)
    return planes.transpose(1, 2, 0)


def _snap(values: float | Array) -> Array:
    """Round to multiples of 2**-40: a pixel then has the same position whichever window it is reached through."""
    return np.round(np.asarray(values, np.float64) * 2.0**40) * 2.0**-40


def _unit(rgb: Sequence[int]) -> Array:
    """Colour in 0-255 → (3, 1, 1) in [0, 1]."""
    return (np.asarray(rgb, np.float32) / 255)[:, None, None]


def _draw(planes: Array, thing: Placed, xs: Array, ys: Array, pitch: float) -> None:
    """Blend one object into ``planes`` (3, H, W), touching only its bounding box."""
    columns, rows = _span(xs, thing.x, thing.radius, pitch), _span(ys, thing.y, thing.radius, pitch)
    xs, ys = xs[columns], ys[rows]
    if not (xs.size and ys.size):
        return
    x = ((xs - thing.x) / thing.radius).astype(np.float32)[None, :]
    y = ((thing.y - ys) / thing.radius).astype(np.float32)[:, None]
    cover = np.clip(0.5 - SDF[thing.shape](x, y) * (thing.radius / pitch), 0.0, 1.0)
    paint = _unit(thing.rgb)
    if thing.pattern is not None:
        paint = paint * (TWIN + (1 - TWIN) * _bright(thing.pattern, xs, ys, pitch))
    box = planes[:, rows, columns]
    box[:] = box * (1 - cover) + paint * cover


def _span(centres: Array, centre: float, radius: float, pitch: float) -> slice:
    """The pixels along one axis that an object can reach, two to spare."""
    first = floor((centre - radius - centres[0]) / pitch) - 2
    last = ceil((centre + radius - centres[0]) / pitch) + 3
    return slice(max(first, 0), max(last, 0))


def _bright(pattern: str, xs: Array, ys: Array, pitch: float) -> Array:
    """(H, W): how much of each pixel has the full colour, in [0, 1]."""
    pixels = PERIOD / pitch
    if pixels < LEAST_PERIOD:
        return np.full((len(ys), len(xs)), 0.5, np.float32)
    # distance from the middle of the period that the pixel lies in, in periods: 0 to 1/2
    x, y = (np.abs(c / PERIOD - np.floor(c / PERIOD) - 0.5).astype(np.float32) for c in (xs, ys))
    if pattern == "dotted":  # dark dots that fill half of each cell
        reach = np.sqrt(x[None, :] ** 2 + y[:, None] ** 2) - sqrt(0.5 / pi)
        return np.clip(0.5 + reach * pixels, 0.0, 1.0)
    bands_x, bands_y = (np.clip(0.5 + (0.25 - c) * pixels, 0.0, 1.0) for c in (x, y))
    if pattern == "striped":
        return np.repeat(bands_y[:, None], len(xs), axis=1)
    if pattern == "checkered":
        across, down = bands_x[None, :], bands_y[:, None]
        return across * down + (1 - across) * (1 - down)
    raise ValueError(f"pattern is {pattern!r}; expected 'striped', 'dotted' or 'checkered'")
