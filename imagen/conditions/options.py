"""What a call may pass of conditions beside text and pictures to start from, at the command line. No torch.

A further condition is a line of :data:`OPTIONS` here, a line of ``CALLED`` in :mod:`imagen.conditions.call`, and an
argument of ``ImagenPipeline.__call__``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from imagen.checks import check_choice, check_int
from unets.options import by_name

Stored = Mapping[str, Sequence[str]]
"""What a model keeps of a condition."""


class Option(NamedTuple):
    """An option of sample.py.

    Attributes:
        read: (flag, word) -> what the pipeline's call takes; raises ValueError, naming both.
        check: (word, what the model stores of it, number in the networks' option) raises ValueError for what is none.
    """

    flag: str
    metavar: str
    help: str
    read: Callable[[str, str], Any] = lambda _flag, word: word
    check: Callable[[object, Stored, int], object] | None = None


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


def class_number(label: object, stored: Stored, count: int) -> int | None:
    """The class that a label means: a number, a name, or None for none.

    Args:
        stored: of the model: ``names`` of the classes.
        count: of the classes; 0: no network reads one.

    Raises:
        ValueError: no such class.
    """
    if label is None or not count:
        return None
    names = [_plain(name) for name in stored.get("names", ())]
    if isinstance(label, str) and not (label.strip().isdecimal() and _plain(label) not in names):
        if not names:
            raise ValueError(f"label is {label!r}, but this model's classes have no names; give a number below {count}")
        return names.index(check_choice("label", _plain(label), names))
    return check_int("label", int(label) if isinstance(label, str) else label, 0, count - 1)


def _plain(name: str) -> str:
    """Underscores and spaces are the same, as in :class:`imagen.data.fields.Label`."""
    return " ".join(name.replace("_", " ").split())


LABEL_HELP = "class of all pictures, by number or name, where the model has classes"
OPTIONS: dict[str, Option] = {
    "mask": Option("--mask", "FILE", "a picture whose transparent parts are painted, where the model does so", painted),
    "label": Option("--label", "CLASS", LABEL_HELP, check=class_number),
}
"""Argument of the pipeline's call -> its option."""


def unread(name: str) -> ValueError:
    """The error for a condition that no network of the call reads."""
    return ValueError(f"{name} is given but no stage that runs was trained with one; leave it out")


def check_conditions(
    given: Mapping[str, object], stored: Mapping[str, Stored], networks: Sequence[Mapping[str, Any]]
) -> None:
    """What can be said of conditions before the model is loaded.

    Args:
        given: by argument of the call.
        stored: what the model keeps of each.
        networks: arguments of the constructors of those that run.

    Raises:
        ValueError: one that nothing reads, or a value that is none.
    """
    options = [by_name(network.get(option)) for network in networks for option in ("classes", "extra_channels")]
    for name, value in given.items():
        numbers = [option[name] for option in options if name in option]
        if not numbers:
            raise unread(name)
        if check := OPTIONS[name].check:
            check(value, stored.get(name) or {}, min(numbers))
