"""Test pictures drawn with PIL, too large and then reduced: no part of the renderer or the detector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

RED, GREEN, BLUE, YELLOW = (220, 40, 40), (40, 170, 60), (50, 80, 220), (240, 210, 40)
WHITE, CYAN = (250, 250, 250), (40, 200, 210)
GRAY, NAVY, OLIVE, TEAL = (128, 128, 128), (20, 25, 70), (95, 100, 45), (0, 105, 110)
Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Drawn:
    """One object; centre and bounding radius as fractions of the side, y down."""

    shape: str
    color: Rgb
    x: float = 0.5
    y: float = 0.5
    r: float = 0.2
    pattern: str | None = None


def _corners(shape: str) -> list[tuple[float, float]]:
    def turn(n: int, first: float) -> list[tuple[float, float]]:
        return [(math.cos(first + 2 * math.pi * k / n), math.sin(first + 2 * math.pi * k / n)) for k in range(n)]

    if shape in ("circle", "ring"):
        return turn(180, 0.0)
    if shape == "star":
        return [(x * s, y * s) for (x, y), s in zip(turn(10, -math.pi / 2), (1.0, 0.42) * 5, strict=True)]
    if shape == "cross":
        a, b = 0.3, math.sqrt(1 - 0.3**2)
        return [
            (a, b),
            (a, a),
            (b, a),
            (b, -a),
            (a, -a),
            (a, -b),
            (-a, -b),
            (-a, -a),
            (-b, -a),
            (-b, a),
            (-a, a),
            (-a, b),
        ]
    if shape == "heart":
        steps = np.linspace(0, 2 * math.pi, 200)
        y = 13 * np.cos(steps) - 5 * np.cos(2 * steps) - 2 * np.cos(3 * steps) - np.cos(4 * steps)
        return [(float(a) / 16.92, -float(b + 0.08) / 16.92) for a, b in zip(16 * np.sin(steps) ** 3, y, strict=True)]
    first = {
        "triangle": -math.pi / 2,
        "square": math.pi / 4,
        "hexagon": 0.0,
        "diamond": 0.0,
        "upside down": math.pi / 2,
    }
    return turn({"triangle": 3, "upside down": 3, "hexagon": 6}.get(shape, 4), first[shape])


def _bright(pattern: str, side: int) -> np.ndarray:
    """(side, side) of bools: which pixels have the full colour, period 1/40."""
    x, y = np.meshgrid((np.arange(side) + 0.5) / side * 40, (np.arange(side) + 0.5) / side * 40)
    if pattern == "striped":
        return y % 1 < 0.5
    if pattern == "checkered":
        return (x % 1 < 0.5) == (y % 1 < 0.5)
    return (x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 > 0.5 / math.pi


def draw(objects: list[Drawn], background: Rgb = GRAY, side: int = 256) -> Image.Image:
    """The picture; at 64 px a patterned object has the mean of its two tones."""
    finer = 4 if side < 512 else 2
    fine = side * finer
    picture = np.full((fine, fine, 3), background, dtype=np.uint8)
    for thing in objects:
        mask = Image.new("L", (fine, fine))
        pen = ImageDraw.Draw(mask)
        pen.polygon(
            [((thing.x + thing.r * x) * fine, (thing.y + thing.r * y) * fine) for x, y in _corners(thing.shape)], 255
        )
        if thing.shape == "ring":
            hole = 0.58 * thing.r
            box = [(thing.x - hole) * fine, (thing.y - hole) * fine, (thing.x + hole) * fine, (thing.y + hole) * fine]
            pen.ellipse(box, 0)
        inside = np.asarray(mask) > 0
        picture[inside] = thing.color
        if thing.pattern is not None:
            full = _bright(thing.pattern, fine)[inside][:, None] if side >= 120 else 0.5
            picture[inside] = (np.array(thing.color) * (0.5 + 0.5 * full)).astype(np.uint8)
    return Image.fromarray(picture).reduce(finer)
