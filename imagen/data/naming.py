"""What a file is by its name alone, and which files of a shard make an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

CAPTION_ENDINGS = ("txt", "cls", "json")
COMMON = "png jpg jpeg webp bmp gif tif tiff npy"  # endings of what is read; rules 1 know these alone
FURTHER = """
    apng avif avifs blp bw cur dcx dds dib fit fits flc fli ftc ftu gbr icb icns ico iim im j2c j2k jfif jp2 jpc jpe jpf
    jpx mpo msp pbm pcd pcx pfm pgm pnm ppm psd pxr qoi ras rgb rgba sgi tga vda vst xbm xpm
"""  # of what Pillow reads besides, without what it only knows by name or needs a program for
OTHERS = """
    arw cr2 cr3 dcm dicom dng emf eps exr hdr heic heif hif jxl jxr nef nii orf psb raf rw2 svg svgz wdp wmf xcf
"""  # of pictures that are not read
FIRST, FOREIGN = frozenset(COMMON.split()), frozenset(OTHERS.split())
READ = FIRST | frozenset(FURTHER.split())
FileT = TypeVar("FileT")


def is_picture(ending: str, rules: int = 2) -> bool:
    """Whether files of this ending, with or without its dot, hold pictures that can be read; of ``cond.png`` the last
    part counts. Rules 1 know fewer formats.
    """
    return ending.rpartition(".")[2].lower() in (FIRST if rules == 1 else READ)


def is_foreign(ending: str) -> bool:
    """Whether files of this ending hold pictures of a format that is not read."""
    return ending.rpartition(".")[2].lower() in FOREIGN


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
        for each item what its path has beyond the one up to the first dot ("" for none, or ``.01``), and its files by
        ending: the two with a dot between them are what ``files`` called it, behind a dot.
    """
    longest_first = sorted(named, key=len, reverse=True)
    items: dict[str, dict[str, FileT]] = {}
    for rest, file in files.items():
        ending = next(
            (one for one in longest_first if rest == one or rest.endswith(f".{one}")), rest.rpartition(".")[2]
        )
        items.setdefault(f".{rest}".removesuffix(f".{ending}"), {})[ending] = file
    if not any(map(is_picture, items.get("", ()))):
        return items
    captions = {*CAPTION_ENDINGS, *named}
    return {
        more: found
        for more, found in items.items()
        if not more or (any(map(is_picture, found)) and any(ending in captions for ending in found))
    }
