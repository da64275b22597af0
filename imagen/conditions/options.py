"""What a call may pass of conditions beside text and pictures to start from, at the command line. No torch.

A further condition is a line of :data:`OPTIONS` here, a line of ``CALLED`` in :mod:`imagen.conditions.call`, and an
argument of ``ImagenPipeline.__call__``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps


@dataclass(frozen=True)
class Option:
    """An option of sample.py.

    Attributes:
        read: (flag, word) -> what the pipeline's call takes; raises ValueError, naming both.
    """

    flag: str
    metavar: str
    help: str
    read: Callable[[str, str], Any]


def word(flag: str, given: str) -> str:
    """As it is written."""
    return given


def picture(flag: str, given: str) -> Image.Image:
    """A picture file, upright. Raises: ValueError for one that cannot be read."""
    try:
        with Image.open(given) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"{flag} {given!r} cannot be read as a picture: {reason}") from error


def painted(flag: str, given: str) -> Image.Image:
    """A picture with a part to be painted. Raises: ValueError for one that cannot be read, or is opaque all over."""
    image = picture(flag, given)
    if not image.has_transparency_data or not any(image.convert("RGBA").getchannel("A").histogram()[:128]):
        raise ValueError(
            f"{flag} {given!r} has no transparent part, so nothing would be painted; erase in the picture itself what "
            "is to be painted"
        )
    return image


OPTIONS: dict[str, Option] = {
    "mask": Option("--mask", "FILE", "a picture whose transparent parts are painted, where the model does so", painted),
    "label": Option("--label", "CLASS", "class of all pictures, by number or name, where the model has classes", word),
}
"""Argument of the pipeline's call -> its option."""
