"""Files that sample.py writes: names that say prompt and seed, settings inside, nothing ever overwritten."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

from PIL import Image, PngImagePlugin

KEY = "imagen"
"""tEXt chunk that holds the settings as JSON; "Description" holds the prompt for other programs."""


def slug(text: str, limit: int = 60) -> str:
    """``text`` as part of a file name: lower case words joined by hyphens, cut at a word; "picture" if none is left."""
    words = " ".join(re.findall(r"\w+", text.lower()))
    return shorten(words, limit, placeholder="").replace(" ", "-") or "picture"


def free_stem(folder: Path, stem: str, suffixes: Sequence[str]) -> str:
    """``stem``, or the first of stem_2, stem_3, ... of which no file with any of the suffixes is in the folder."""
    number, candidate = 1, stem
    while any((folder / f"{candidate}{suffix}.png").exists() for suffix in suffixes):
        number += 1
        candidate = f"{stem}_{number}"
    return candidate


def write_png(image: Image.Image, folder: Path, stem: str, settings: Mapping[str, Any]) -> Path:
    """Write a picture with its settings inside, under a name that no file has.

    The file appears whole: it is written beside its place and moved there, so an interruption leaves no half of one.

    Returns:
        the path, ``stem``.png or with a counter behind.
    """
    info = PngImagePlugin.PngInfo()
    info.add_text("Description", str(settings.get("prompt") or ""))
    info.add_text("Software", "imagen")
    info.add_text(KEY, json.dumps(settings))
    while True:
        path = folder / f"{free_stem(folder, stem, [''])}.png"
        with suppress(FileExistsError):  # another took the name meanwhile
            path.touch(exist_ok=False)
            break
    partial = path.with_suffix(".png.tmp")
    try:
        # of the same pixels a quarter of the time; a photograph's file is a twelfth larger
        image.save(partial, format="PNG", pnginfo=info, compress_type=zlib.Z_RLE)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise
    return path


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings inside a picture that sample.py wrote.

    Raises:
        ValueError: the file holds none.
    """
    with Image.open(path) as image:
        text = getattr(image, "text", {}).get(KEY)
    if text is None:
        raise ValueError(f"{str(path)!r} holds no settings of sample.py")
    return dict(json.loads(text))
