"""What a finished picture of the shapes world shows: its background and its objects.

The detector judges pixels alone. It imports nothing from ``imagen.data``: the colours below are the table of the
world's specification, the outlines are drawn in :mod:`imagen.evaluation.templates`. Pictures of 192 px and more are
judged at 256 px, smaller ones at 64 px, where a patterned fill is one tone: the mean of the colour and its dark twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    tone: tuple[float, ...]

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
    rgb = rgb.reduce(width // side) if width % side == 0 else rgb.resize((side, side), Image.Resampling.BOX)
    return np.asarray(rgb, dtype=np.float32)


def _nearest(
    rgb: Floats, table: Mapping[str, tuple[int, int, int]], limit: float, shades: tuple[float, ...] = (1.0,)
) -> str | None:
    """The name of the nearest colour (3,) of a table, in any of the shades, or None beyond ``limit``."""
    tones = np.array([[shade * part for part in tone] for tone in table.values() for shade in shades])
    distances = np.linalg.norm(to_lab(tones) - to_lab(rgb), axis=-1)
    best = int(distances.argmin())
    return list(table)[best // len(shades)] if distances[best] <= limit else None


def _border(side: int) -> Bools:
    """The outermost 64th of the picture: objects lie inside it."""
    width = side // 64
    return np.pad(np.zeros((side - 2 * width, side - 2 * width), dtype=bool), width, constant_values=True)


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


def _found(whole: _View, labels: NDArray[np.int32], label: int, place: tuple[slice, slice]) -> Found:
    """Name the object with that label, which lies in the rows and columns ``place``."""
    side = len(labels)
    top, left = (max(along.start - 4, 0) for along in place)
    window = (slice(top, place[0].stop + 4), slice(left, place[1].stop + 4))
    view = _View(whole.rgb[window], whole.background[window], whole.distance[window])
    own, free = labels[window] == label, labels[window] == 0
    inner = _interior(own, view.distance, 1 if side == 64 else 3)
    pattern = None if side == 64 else _pattern(view.rgb, inner, side)
    tone, mask = _tone_and_mask(view, own, free, inner, plain=pattern in (None, "plain"))
    color = _nearest(tone, COLORS, _MAX_COLOR_DISTANCE, (1.0, 0.75) if pattern is None else (1.0,))
    match = match_shape(mask)
    center = (match.center[0] / side + left / side, match.center[1] / side + top / side)
    return Found(color, match.shape, pattern, center, match.radius / side, match.mismatch, tuple(map(float, tone)))


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
    objects = [_found(view, labels, label, place) for label, place in enumerate(ndimage.find_objects(labels), start=1)]
    objects.sort(key=lambda found: -found.radius)
    middle = background[side // 2, side // 2]
    return Detection(_nearest(middle, BACKGROUNDS, _MAX_BACKGROUND_DISTANCE), tuple(objects))
