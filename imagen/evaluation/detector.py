"""What a finished picture of the shapes world shows: its background and its objects.

The detector judges pixels alone. From ``imagen.data`` it has the names of the colours and what they stand for, and
nothing that draws: the outlines are drawn in :mod:`imagen.evaluation.templates`. Pictures of 192 px and more are judged
at 256 px, smaller ones at 64 px, where a patterned fill is one tone: the mean of the colour and its dark twin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagen.data.shapes.language import BACKGROUNDS, COLORS
from imagen.evaluation.templates import Floats, match_shape

PERIODS = 40.0  # of a patterned fill, per picture side
LARGE_RADIUS = 0.14  # small objects have radii up to 0.115, large ones from 0.17

_MIN_AREA = 0.0006  # of the picture: less is a speckle
_WEAK, _STRONG = 6.0, 10.0  # CIE Lab distances from the background that grow and that start an object
_MAX_COLOR_DISTANCE = 30.0
_MAX_BACKGROUND_DISTANCE = 22.0
_MIN_TONE_STD = 0.08  # relative; a full pattern has 0.33
_MIN_PEAK = 0.25  # of the tone's standard deviation; the weakest full pattern has 0.40
_RGB_TO_XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
_RGB_TO_WHITE = (_RGB_TO_XYZ / _RGB_TO_XYZ.sum(axis=1, keepdims=True)).T.astype(np.float32)

Bools = NDArray[np.bool_]
Picture = Image.Image | NDArray[np.generic]


@dataclass(frozen=True)
class Found:
    """One object: names (None where nothing fits), centre (x, y) and bounding radius as fractions of the side.

    ``pattern`` is "plain", "striped", "dotted", "checkered", or None at 64 px, where patterns cannot be told apart.
    ``mismatch`` is how far the outline is from the best template (:class:`imagen.evaluation.templates.ShapeMatch`);
    ``tone`` its (brighter) colour, 0 to 255.
    """

    color: str | None
    shape: str | None
    pattern: str | None
    center: tuple[float, float]
    radius: float
    mismatch: float
    tone: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def size(self) -> str:
        """The size word that the radius earns."""
        return "large" if self.radius > LARGE_RADIUS else "small"


@dataclass(frozen=True)
class Detection:
    """The background's name (None if none of the six is near) and the objects, largest first."""

    background: str | None
    objects: tuple[Found, ...]


@dataclass(frozen=True)
class _View:
    """A picture at the size it is judged at: (S, S, 3) colours and background in [0, 255], (S, S) Lab distances."""

    rgb: Floats
    background: Floats
    distance: Floats

    def __getitem__(self, window: tuple[slice, slice]) -> _View:
        return _View(self.rgb[window], self.background[window], self.distance[window])


def to_lab(rgb: Floats) -> Floats:
    """sRGB (..., 3) in [0, 255] to CIE Lab (D65)."""
    c: NDArray[np.float32] = np.asarray(rgb, dtype=np.float32) / np.float32(255)
    linear = np.where(
        c <= 0.04045, c / np.float32(12.92), ((c + np.float32(0.055)) / np.float32(1.055)) ** np.float32(2.4)
    )
    xyz = linear.astype(np.float32) @ _RGB_TO_WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), np.float32(24389 / 27 / 116) * xyz + np.float32(16 / 116))
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _pixels(picture: Picture) -> Floats:
    """(S, S, 3) in [0, 255] with S = 64 or 256."""
    if not isinstance(picture, Image.Image):
        array: NDArray[Any] = np.asarray(picture)
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
    return np.asarray(rgb, dtype=np.float32)


@cache
def _shades(table: str, shades: tuple[float, ...]) -> tuple[tuple[str, ...], Floats]:
    """The names of a table, one for every shade of every colour, and their Lab values."""
    values = {"colors": COLORS, "backgrounds": BACKGROUNDS}[table]
    names = tuple(name for name in values for _ in shades)
    return names, to_lab(np.array([[shade * part for part in rgb] for rgb in values.values() for shade in shades]))


def _nearest(rgb: Floats, table: str, limit: float, shades: tuple[float, ...] = (1.0,)) -> str | None:
    """The name of the nearest colour (3,) of a table, or None beyond ``limit``."""
    names, labs = _shades(table, shades)
    distances = np.linalg.norm(labs - to_lab(rgb), axis=-1)
    best = int(distances.argmin())
    return names[best] if distances[best] <= limit else None


@cache
def _border(side: int) -> Bools:
    """The outermost 64th of the picture: objects lie inside it."""
    width = side // 64
    edge = np.ones((side, side), dtype=bool)
    edge[width:-width, width:-width] = False
    return edge


def _plane(colors: Floats) -> Floats:
    """(S, S, 3): the background, a plane through the border's colours, so that a slight drift of tone is no object."""
    side = colors.shape[0]
    border = _border(side)
    edge = colors[border]
    median = np.median(edge, axis=0)
    near = np.abs(edge - median).max(axis=1) < 20
    y, x = (np.nonzero(border)[axis][near] / side - 0.5 for axis in (0, 1))
    basis = np.stack([np.ones_like(x), x, y], axis=1)
    plane, *_ = np.linalg.lstsq(basis, edge[near] - median, rcond=None)
    axis = ((np.arange(side) / side - 0.5)[:, None] * np.ones(3)).astype(np.float32)
    flat = median + plane[0]
    return (flat + axis[None] * plane[1] + axis[:, None] * plane[2]).astype(np.float32)


def _disk(radius: float) -> Bools:
    n = int(radius)
    y, x = np.mgrid[-n : n + 1, -n : n + 1]
    return x**2 + y**2 <= radius**2


def _segment(distance: Floats) -> NDArray[np.int32]:
    """Label the objects 1, 2, ...; ``distance`` (S, S) is every pixel's Lab distance from the background."""
    from scipy import ndimage

    side = distance.shape[0]
    noise = float(np.percentile(distance[_border(side)], 95))
    weak, strong = (level + min(2 * noise, 4.0) for level in (_WEAK, _STRONG))
    mask = distance > weak
    if side == 64:  # gaps of a pixel or two: split at half the neighbourhood's contrast
        labels, _ = ndimage.label(mask & (distance > 0.5 * ndimage.maximum_filter(distance, size=5)))
    else:  # a pattern's dark twin may equal the background: close gaps of half a period, fill holes of one
        closed = ndimage.binary_closing(np.pad(mask, 4), _disk(2.0))[4:-4, 4:-4]
        holes, count = ndimage.label(~closed)
        areas = np.bincount(holes.ravel(), minlength=count + 1)
        closed |= (areas < 1.5 * (side / PERIODS) ** 2)[holes]
        labels, _ = ndimage.label(closed, np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    contrasts = np.bincount(labels.ravel(), weights=distance.ravel())
    keep = np.zeros(areas.size, dtype=bool)
    keep[np.unique(labels[distance > strong])] = True
    keep &= (areas >= _MIN_AREA * side**2) & (contrasts >= strong * _MIN_AREA * side**2)
    keep[0] = False
    return (np.cumsum(keep) * keep)[labels].astype(np.int32)


def _pattern(rgb: Floats, interior: Bools, side: int) -> str:
    """Plain, striped, dotted or checkered, by the peaks of the interior's spectrum near the specified period.

    In cycles per side, stripes have one pair of peaks at 40, a square lattice of dots has two at 40 and a checkerboard
    two at 40 * sqrt(2).
    """
    tone = rgb @ rgb[interior].mean(axis=0)
    values = tone[interior] / max(float(tone[interior].mean()), 1e-6) - 1.0
    std = float(values.std())
    if std < _MIN_TONE_STD or values.size < 60:
        return "plain"
    field = np.zeros(interior.shape)
    field[interior] = values
    power = np.abs(np.fft.fft2(field, (side, side))) / (values.size * std)
    ky, kx = np.meshgrid(np.fft.fftfreq(side, 1 / side), np.fft.fftfreq(side, 1 / side), indexing="ij")
    radius = np.hypot(kx, ky)
    power[(radius < 0.75 * PERIODS) | (radius > 1.75 * PERIODS)] = 0.0
    first = np.unravel_index(np.argmax(power), power.shape)
    if power[first] < _MIN_PEAK:
        return "plain"
    strongest = float(power[first])
    cosine = (kx * kx[first] + ky * ky[first]) / np.maximum(radius * radius[first], 1e-9)
    power[np.abs(cosine) > np.sqrt(0.5)] = 0.0  # what is left points elsewhere, by 45 degrees or more
    second = np.unravel_index(np.argmax(power), power.shape)
    if power[second] < 0.5 * strongest:
        return "striped"
    return "dotted" if (radius[first] + radius[second]) / 2 < 1.2 * PERIODS else "checkered"


def _interior(own: Bools, distance: Floats, widest: int) -> Bools:
    """The object's pixels away from its edge; of a thin object those farthest from the background."""
    from scipy import ndimage

    for width in range(widest, 0, -1):
        inner = ndimage.binary_erosion(own, _disk(width))
        if inner.sum() >= max(8, 0.2 * own.sum()):
            return inner
    return own & (distance >= np.percentile(distance[own], 70))


def _tone_and_mask(view: _View, own: Bools, free: Bools, inner: Bools, plain: bool) -> tuple[Floats, Floats]:
    """The object's (brighter) tone (3,) and soft mask: a pixel's share of the way from the background to the tone."""
    from scipy import ndimage

    pixels = view.rgb[inner]
    if not plain:
        brightness = pixels.sum(axis=1)
        return np.median(pixels[brightness >= np.percentile(brightness, 70)], axis=0), own.astype(np.float64)
    tone = np.median(pixels, axis=0)
    step = tone - view.background
    share = ((view.rgb - view.background) * step).sum(axis=-1) / np.maximum((step**2).sum(axis=-1), 1.0)
    near = own | (ndimage.binary_dilation(own, _disk(2.0)) & free)
    mask = np.where(near & (share > 0.1), np.clip(share, 0.0, 1.0), 0.0)
    if mask.sum() < 0.5 * own.sum():  # several tones, none of which stands for the object
        mask = own.astype(np.float64)
    return tone, mask


def _found(view: _View, labels: NDArray[np.int32], label: int, side: int) -> Found:
    """Name one object; ``view`` and ``labels`` are the window around it, whose corner is the origin of its centre."""
    own, free = labels == label, labels == 0
    inner = _interior(own, view.distance, 1 if side == 64 else 3)
    pattern = None if side == 64 else _pattern(view.rgb, inner, side)
    tone, mask = _tone_and_mask(view, own, free, inner, plain=pattern in (None, "plain"))
    color = _nearest(tone, "colors", _MAX_COLOR_DISTANCE, (1.0, 0.75) if pattern is None else (1.0,))
    match = match_shape(mask)
    center = (match.center[0] / side, match.center[1] / side)
    red, green, blue = (float(value) for value in tone)
    return Found(color, match.shape, pattern, center, match.radius / side, match.mismatch, (red, green, blue))


def detect(picture: Picture) -> Detection:
    """Find the background and the objects of a picture.

    Args:
        picture: square, 64 px or more; a PIL image or an array (H, W, 3), uint8 or float in [0, 1].

    Raises:
        ValueError: not such a picture.
    """
    from scipy import ndimage

    rgb = _pixels(picture)
    side = rgb.shape[0]
    background = _plane(rgb)
    smooth = rgb if side == 64 else ndimage.gaussian_filter(rgb, (0.6, 0.6, 0.0), truncate=3.0)
    lab = to_lab(smooth)
    view = _View(rgb, background, np.linalg.norm(lab - _plane(lab), axis=-1))
    labels = _segment(view.distance)
    objects = []
    for label, (rows, cols) in enumerate(ndimage.find_objects(labels), start=1):
        top, left = max(rows.start - 4, 0), max(cols.start - 4, 0)
        window = (slice(top, rows.stop + 4), slice(left, cols.stop + 4))
        found = _found(view[window], labels[window], label, side)
        center = (found.center[0] + left / side, found.center[1] + top / side)
        objects.append(replace(found, center=center))
    objects.sort(key=lambda found: -found.radius)
    middle = background[side // 2, side // 2]
    return Detection(_nearest(middle, "backgrounds", _MAX_BACKGROUND_DISTANCE), tuple(objects))
