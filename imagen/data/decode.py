"""From stored bytes to an array of pixels: whatever is in the file, or one line that says why it cannot be used."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISBLK, S_ISCHR, S_ISDIR, S_ISFIFO, S_ISSOCK
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .naming import is_foreign
from .profiles import DEEP, to_srgb

Raw = Path | bytes | Image.Image | NDArray[Any]
Pixels = NDArray[Any]  # (H, W, C): uint8 in [0, 255], or float32 in [-1, 1]
Picture = Pixels | Image.Image  # of 8 bits PIL's own, in mode L or RGB: copying a large one into an array costs time

NO_FILES = {S_ISFIFO: "pipe", S_ISCHR: "device", S_ISBLK: "device", S_ISSOCK: "socket", S_ISDIR: "directory"}

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as PIL's own conversion
_NUMPY_MAGIC = b"\x93NUMPY"


class NothingUsable(ValueError):
    """So many items in a row cannot be used that it is no accident."""


class Unusable(ValueError):
    """A picture or caption that cannot be trained on; the message is the reason, in one line."""


@dataclass(frozen=True)
class Decoded:
    """A picture as stored, upright.

    Attributes:
        picture: PIL's for 8-bit image files, pixels for all others.
        repairs: what had to be changed to read it, a short phrase each.
    """

    picture: Picture
    repairs: tuple[str, ...] = ()

    @property
    def pixels(self) -> Pixels:
        """(H, W, C), uint8 for 8-bit files, float32 in [-1, 1] for all others."""
        return to_pixels(self.picture)


def to_pixels(picture: Picture) -> Pixels:
    """The picture as an array, (H, W, C)."""
    if not isinstance(picture, Image.Image):
        return picture
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decode(raw: Raw, name: str, channels: int = 3, profiles: bool = True) -> Decoded:
    """Decode a picture to `channels` channels.

    Grey is repeated for three channels and colour is weighed to one; transparency is laid over white; CMYK and palettes
    become RGB; colours are brought to sRGB; of an animation the first frame is taken; EXIF orientation is undone.
    16-bit integers keep all their bits: [0, 65535] becomes [-1, 1] in float32. Floating-point pixels must lie in
    [-1, 1] already. ``.npy`` arrays, (H, W) or (H, W, C), may have any number of channels.

    Args:
        raw: a file, its bytes, or a picture that a library has decoded already.
        name: of the file, whose ending is compared with its content.
        profiles: whether colour profiles count; without, the numbers are taken as they are.

    Raises:
        Unusable: missing, no picture, truncated, larger than PIL's limit against decompression bombs, not finite, or of
            channels that cannot become `channels`.
    """
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            decoded = _open(raw, name, profiles)
    except Unusable:
        raise
    except UnidentifiedImageError:  # its own message holds an address in memory
        suffix = PurePosixPath(name).suffix
        named = f", and {suffix} is none that is read: convert it to PNG" if is_foreign(suffix) else ""
        raise Unusable(f"is no picture of a known format{named}") from None
    except Exception as error:  # damaged files make decoders raise anything: struct.error, zlib.error, IndexError, ...
        raise Unusable(f"cannot be read as a picture: {type(error).__name__}: {_one_line(error)}") from error
    told = tuple(dict.fromkeys(f"read with a warning: {_one_line(warning.message)}" for warning in warned))
    return _with_channels(Decoded(decoded.picture, decoded.repairs + told), channels)


def stored(path: Path) -> bytes:
    """What a file holds.

    Raises:
        Unusable: there is none, or it cannot be read.
    """
    try:
        mode = path.stat().st_mode
        for test, kind in NO_FILES.items():  # a pipe would wait for ever, a device may have no end
            if test(mode):
                raise Unusable(f"cannot be read: Is a {kind}")
        return path.read_bytes()
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror}") from error


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. Raises: ValueError, also where it is nested too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:200]


def _open(raw: Raw, name: str, profiles: bool) -> Decoded:
    if isinstance(raw, np.ndarray):
        return Decoded(_from_array(raw))
    if isinstance(raw, Image.Image):
        return _from_pil(raw, name, profiles)
    data = stored(raw) if isinstance(raw, Path) else raw
    if not data:
        raise Unusable("the file is empty")
    if data.startswith(_NUMPY_MAGIC):
        return Decoded(_from_array(np.load(io.BytesIO(data), allow_pickle=False)))
    with Image.open(io.BytesIO(data)) as image:
        if _is_deep_colour(image):
            left = (DEEP,) if profiles and image.info.get("icc_profile") else ()
            return Decoded(_from_array(_read_deep_colour(data)), left)
        return _from_pil(image, name, profiles)


def _is_deep_colour(image: Image.Image) -> bool:
    """More than one channel of 16 bits, of which PIL would keep the upper 8."""
    tiles = getattr(image, "tile", None)
    mode = tiles[0][3] if tiles else None
    mode = mode[0] if isinstance(mode, tuple) else mode
    return image.mode in ("RGB", "RGBA", "LA") and isinstance(mode, str) and ";16" in mode


def _read_deep_colour(data: bytes) -> NDArray[Any]:
    try:
        import cv2
    except ImportError:
        raise Unusable(
            "16-bit colour, which Pillow reads to 8 bits: pip install opencv-python-headless, or save it as .npy"
        ) from None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise Unusable("16-bit colour with transparency: save it without, or as .npy")
    return np.ascontiguousarray(pixels[..., ::-1])


def _from_array(array: NDArray[Any]) -> Pixels:
    """(H, W) or (H, W, C) of any number type -> pixels."""
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise Unusable(f"an array of shape {array.shape}; expected (H, W) or (H, W, C)")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels.shape[0] * pixels.shape[1] > limit:
        raise Unusable(f"{pixels.shape[0]} x {pixels.shape[1]} pixels are more than the limit of {limit}")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        return pixels.astype(np.float32) / np.float32(32767.5) - np.float32(1)
    if pixels.dtype.kind != "f":
        raise Unusable(f"an array of {pixels.dtype}; expected uint8, uint16 or floating-point numbers")
    if not np.isfinite(pixels).all():
        raise Unusable("not all floating-point pixels are finite")
    if np.abs(pixels).max() > 1:
        low, high = float(pixels.min()), float(pixels.max())
        raise Unusable(f"floating-point pixels lie in [{low:.4g}, {high:.4g}]; expected [-1, 1]: scale them")
    return pixels.astype(np.float32)


def _from_pil(image: Image.Image, name: str, profiles: bool) -> Decoded:
    repairs = []
    expected = Image.registered_extensions().get(PurePosixPath(name).suffix.lower())
    if expected and image.format and expected != image.format and {expected, image.format} != {"JPEG", "MPO"}:
        repairs.append(f"named as {expected} but is {image.format}")
    frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
    if frames > 1:
        repairs.append(f"the first of {frames} frames")
    image.load()
    try:
        if image.getexif().get(0x0112, 1) in range(2, 9):
            image = ImageOps.exif_transpose(image)
            repairs.append("turned upright by its EXIF orientation")
    except Exception:  # EXIF parsers raise anything on damaged blocks; the picture itself has been read
        repairs.append("unreadable EXIF ignored")
    image, told = to_srgb(image) if profiles else (image, None)
    repairs += [told] if told else []
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        return Decoded(_from_array(_deep_grey(image)), tuple(repairs))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            repairs.append("transparency laid over white")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    elif mode not in ("RGB", "L", "1"):
        repairs.append(f"{mode} made RGB")
        image = image.convert("RGB")
    return Decoded(image.convert("L") if mode == "1" else image, tuple(repairs))


def _deep_grey(image: Image.Image) -> NDArray[Any]:
    grey = np.asarray(image)
    if image.mode == "F":
        return grey
    if grey.min() < 0 or grey.max() > 65535:
        raise Unusable(f"32-bit pixels lie in [{grey.min()}, {grey.max()}]; expected 16 bits, [0, 65535]")
    return grey.astype(np.uint16)


def _with_channels(decoded: Decoded, channels: int) -> Decoded:
    picture = decoded.picture
    found = len(picture.getbands()) if isinstance(picture, Image.Image) else picture.shape[-1]
    if found == channels:
        return decoded
    pixels = decoded.pixels
    if found == 1 and channels == 3:
        return Decoded(np.repeat(pixels, 3, axis=-1), decoded.repairs)
    if found == 3 and channels == 1:
        grey = pixels.astype(np.float32) @ _LUMA
        grey = grey.round().astype(np.uint8) if pixels.dtype == np.uint8 else grey
        return Decoded(grey[..., None], (*decoded.repairs, "colour made grey"))
    raise Unusable(f"has {found} channels; the network takes {channels}")
