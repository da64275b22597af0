"""Which files of a shard make an item, by their names alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from .decode import IMAGE_SUFFIXES

CAPTION_ENDINGS = ("txt", "cls", "json")
FileT = TypeVar("FileT")


def is_picture(ending: str) -> bool:
    """Whether files of this ending, written without its dot, hold pictures; of ``cond.png`` the last part counts."""
    return f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a path holds what operating systems leave behind: ``.DS_Store``, ``._a.png``, ``__MACOSX/``."""
    parts = PurePosixPath(name).parts
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in parts)


def split_item(files: Mapping[str, FileT], named: Sequence[str]) -> dict[str, dict[str, FileT]]:
    """The items among files that have the same path up to the first dot of their names.

    A name may hold further dots: ``scan_22.01.png`` and ``scan_22.01.txt`` are an item, ``scan_22.02.png`` the next.
    What stands behind the last dot is the ending, or a longer one that is ``named``. But further files of an item with
    a picture of its own, as ``a.mask.png`` beside ``a.png``, make one of theirs only with a caption: without, they are
    files that nobody asked for, and are left out.

    Args:
        files: by what follows the first dot, in lower case.
        named: endings of fields and captions that the configuration names.

    Returns:
        for each item what its path has beyond the first dot ("" for none), and its files by ending.
    """
    longest_first = sorted(named, key=len, reverse=True)
    items: dict[str, dict[str, FileT]] = {}
    for rest, file in files.items():
        ending = next(
            (one for one in longest_first if rest == one or rest.endswith(f".{one}")), rest.rpartition(".")[2]
        )
        items.setdefault(rest.removesuffix(ending).rstrip("."), {})[ending] = file
    if not any(map(is_picture, items.get("", ()))):
        return items
    captions = {*CAPTION_ENDINGS, *named}
    return {
        more: found
        for more, found in items.items()
        if not more or (any(map(is_picture, found)) and any(ending in captions for ending in found))
    }
