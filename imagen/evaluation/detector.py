"""What a finished picture of the shapes world shows: its background and its objects.

The detector judges pixels alone. It imports nothing from ``imagen.data``: the colours below are the table of the world's
specification, the outlines are drawn in :mod:`imagen.evaluation.templates`. Pictures of 192 px and more are judged at 256 px,
smaller ones at 64 px, where a patterned fill is one tone (the mean of the colour and its half-dark twin).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagen.evaluation.templates import Floats, match_shape

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "cyan": (40, 200, 210),
    "pink": (245, 130, 180),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
BACKGROUNDS = {
    "gray": (128, 128, 128),
    "navy": (20, 25, 70),
    "cream": (245, 235, 210),
    "olive": (95, 100, 45),
    "brown": (110, 70, 40),
    "teal": (0, 105, 110),
}
PERIODS = 40.0  # of a patterned fill, per picture side
LARGE_RADIUS = 0.14  # small objects have radii up to 0.115, large ones from 0.17

_MIN_AREA = 0.0006  # of the picture: less is a speckle
_WEAK, _STRONG = 6.0, 10.0  # CIE Lab distances from the background that grow and that start an object
_MAX_COLOR_DISTANCE = 30.0
_MAX_BACKGROUND_DISTANCE = 22.0
_MIN_TONE_STD = 0.08  # relative; a full pattern has 0.33
_MIN_PEAK = 0.25  # of the tone's standard deviation; the weakest full pattern has 0.40

_RGB_TO_XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """One object: names (None where nothing fits), centre (x, y) and bounding radius as fractions of the picture's side.

    ``pattern`` is "plain", "striped", "dotted", "checkered", or None at 64 px where a pattern cannot be seen.
    """

    color: str | None
    shape: str | None
    pattern: str | None
    center: tuple[float, float]
    radius: float
    mismatch: float

    @property
    def size(self) -> str:
        """"small" or "large"."""
        return "large" if self.radius > LARGE_RADIUS else "small"


@dataclass(frozen=True)
class Detection:
    """The background's name (None if none of the six is near) and the objects, largest first."""

    background: str | None
    objects: tuple[Found, ...]


def to_lab(rgb: NDArray[np.generic]) -> Floats:
    """sRGB (..., 3) in [0, 255] to CIE Lab (D65)."""
    c = np.asarray(rgb, dtype=np.float64) / 255.0
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = linear @ (_RGB_TO_XYZ / _RGB_TO_XYZ.sum(axis=1, keepdims=True)).T
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _pixels(picture: Image.Image | NDArray[np.generic]) -> Floats:
    """(S, S, 3) in [0, 255] with S = 64 or 256.

    Raises:
        ValueError: not a square RGB picture of 64 px or more.
    """
    if not isinstance(picture, Image.Image):
        array = np.asarray(picture)
        if array.ndim != 3 or array.shape[-1] != 3:
            raise ValueError(f"picture has shape {array.shape}; expected (H, W, 3)")
        if array.dtype != np.uint8:
            array = np.clip(np.rint(array * 255.0), 0, 255).astype(np.uint8)
        picture = Image.fromarray(array)
    width, height = picture.size
    if width != height or width < 64:
        raise ValueError(f"picture is {width}x{height} px; expected a square of 64 px or more")
    side = 64 if width < 192 else 256
    rgb = picture.convert("RGB")
    if width != side:
        rgb = rgb.reduce(width // side) if width % side == 0 else rgb.resize((side, side), Image.Resampling.BOX)
    return np.asarray(rgb, dtype=np.float64)


def _nearest(rgb: Floats, table: dict[str, tuple[int, int, int]], limit: float, shades: tuple[float, ...] = (1.0,)) -> str | None:
    lab = to_lab(rgb)
    distances = {
        name: min(float(np.linalg.norm(lab - to_lab(np.asarray(value) * shade))) for shade in shades)
        for name, value in table.items()
    }
    name = min(distances, key=lambda key: distances[key])
    return name if distances[name] <= limit else None


def _background(rgb: Floats) -> Floats:
    """The median of the border: objects lie inside."""
    width = max(1, rgb.shape[0] // 64)
    edge = np.ones(rgb.shape[:2], dtype=bool)
    edge[width:-width, width:-width] = False
    return np.median(rgb[edge], axis=0)


def _disk(radius: float) -> Bools:
    n = int(radius)
    y, x = np.mgrid[-n : n + 1, -n : n + 1]
    return x**2 + y**2 <= radius**2


def _segment(distance: Floats) -> NDArray[np.int32]:
    """Label the objects; ``distance`` (S, S) is every pixel's Lab distance from the background."""
    from scipy import ndimage

    side = distance.shape[0]
    if side == 64:  # gaps of a pixel or two: split at half the neighbourhood's contrast
        mask = (distance > _WEAK) & (distance > 0.5 * ndimage.maximum_filter(distance, size=5))
        labels, _ = ndimage.label(mask)
    else:  # a dark twin may equal the background: close gaps of half a period, fill holes of one
        mask = distance > _WEAK
        padded = ndimage.binary_closing(np.pad(mask, 4), _disk(2.0))[4:-4, 4:-4]
        holes, count = ndimage.label(~padded)
        areas = np.bincount(holes.ravel(), minlength=count + 1)
        padded |= (areas < (side / PERIODS) ** 2 * 1.5)[holes]
        labels, _ = ndimage.label(padded, np.ones((3, 3)))
    strong = np.unique(labels[distance > _STRONG])
    areas = np.bincount(labels.ravel())
    keep = np.zeros(areas.size, dtype=bool)
    keep[strong] = True
    keep &= areas >= _MIN_AREA * side**2
    keep[0] = False
    order = np.cumsum(keep) * keep
    return order[labels].astype(np.int32)


def _pattern(rgb: Floats, interior: Bools) -> str:
    """Plain, striped, dotted or checkered, by the peaks of the interior's spectrum near the specified period.

    In cycles per side: stripes have one pair of peaks at 40, a square lattice of dots two at 40, a checkerboard two at 40 * sqrt(2).
    """
    tone = rgb @ rgb[interior].mean(axis=0)
    values = tone[interior] / tone[interior].mean() - 1.0
    std = float(values.std())
    if std < _MIN_TONE_STD or values.size < 60:
        return "plain"
    field = np.zeros(interior.shape)
    field[interior] = values
    side = interior.shape[0]
    power = np.abs(np.fft.fft2(field)) / (values.size * std)
    ky, kx = np.meshgrid(np.fft.fftfreq(side, 1 / side), np.fft.fftfreq(side, 1 / side), indexing="ij")
    radius = np.hypot(kx, ky)
    power[(radius < 0.75 * PERIODS) | (radius > 1.75 * PERIODS)] = 0.0
    first = np.unravel_index(np.argmax(power), power.shape)
    angle = _angle_from(kx, ky, float(kx[first]), float(ky[first]))
    second = np.unravel_index(np.argmax(np.where(angle > 45.0, power, 0.0)), power.shape)
    if power[first] < _MIN_PEAK:
        return "plain"
    if power[second] < 0.5 * power[first]:
        return "striped"
    return "dotted" if (radius[first] + radius[second]) / 2 < 1.2 * PERIODS else "checkered"


def _angle_from(kx: Floats, ky: Floats, x: float, y: float) -> Floats:
    """Degrees in [0, 90] between the lines through (kx, ky) and (x, y)."""
    cosine = np.abs(kx * x + ky * y) / np.maximum(np.hypot(kx, ky) * np.hypot(x, y), 1e-9)
    return np.degrees(np.arccos(np.clip(cosine, 0.0, 1.0)))


def _interior(own: Bools, distance: Floats) -> Bools:
    """The object's pixels away from its edge; of a thin object those farthest from the background."""
    from scipy import ndimage

    for width in (3, 2, 1):
        if own.shape[0] == 64 and width > 1:
            continue
        inner = ndimage.binary_erosion(own, _disk(width))
        if inner.sum() >= max(8, 0.2 * own.sum()):
            return inner
    return own & (distance >= np.percentile(distance[own], 70))


def _found(rgb: Floats, background: Floats, distance: Floats, labels: NDArray[np.int32], label: int) -> Found:
    from scipy import ndimage

    side, own = rgb.shape[0], labels == label
    inner = _interior(own, distance)
    pattern = None if side == 64 else _pattern(rgb, inner)
    pixels = rgb[inner]
    if pattern in (None, "plain"):
        tone = np.median(pixels, axis=0)
        direction = tone - background
        mask = np.clip((rgb - background) @ direction / (direction @ direction), 0.0, 1.0)
        near = ndimage.binary_dilation(own, _disk(2.0)) & (own | (labels == 0))
        mask = np.where(near & (mask > 0.1), mask, 0.0)
    else:
        bright = pixels.sum(axis=1)
        tone = np.median(pixels[bright >= np.percentile(bright, 70)], axis=0)
        mask = own.astype(np.float64)
    color = _nearest(tone, COLORS, _MAX_COLOR_DISTANCE, (1.0, 0.75) if pattern is None else (1.0,))
    rows, cols = (np.flatnonzero((mask > 0).any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(cols[0])
    match = match_shape(mask[top : rows[-1] + 1, left : cols[-1] + 1])
    center = ((match.center[0] + left) / side, (match.center[1] + top) / side)
    return Found(color, match.shape, pattern, center, match.radius / side, match.mismatch)


def detect(picture: Image.Image | NDArray[np.generic]) -> Detection:
    """Find the background and the objects of a picture.

    Args:
        picture: square, 64 px or more; a PIL image or an array (H, W, 3), uint8 or float in [0, 1].

    Raises:
        ValueError: not such a picture.
    """
    rgb = _pixels(picture)
    background = _background(rgb)
    distance = np.linalg.norm(to_lab(rgb) - to_lab(background), axis=-1)
    labels = _segment(distance)
    objects = [_found(rgb, background, distance, labels, label) for label in range(1, int(labels.max()) + 1)]
    objects.sort(key=lambda found: -found.radius)
    return Detection(_nearest(background, BACKGROUNDS, _MAX_BACKGROUND_DISTANCE), tuple(objects))
