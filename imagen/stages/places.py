"""Folders that are named in one place and looked for from another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEMO = "pretrained/shapes"
"""The model that comes with a checkout of the repository."""


def demo_folder() -> Path:
    """Where it is, from any folder of the checkout or beside the code. Raises: ValueError where it is not."""
    here, code = Path.cwd(), Path(__file__).resolve().parents[2]
    for root in (here, *here.parents, code):
        if (root / DEMO / "model_index.json").is_file():
            return root / DEMO
    raise ValueError(
        f"model {DEMO!r} is not here: it comes with a checkout of the repository, not with the installed package; run "
        "in a checkout, or give another --model"
    )


def remember(name: str | None, root: Path) -> dict[str, str] | None:
    """What a record in the folder ``root`` keeps of a folder that is named; None where ``name`` is no folder here.

    Both ways to it: one outlives a move of the two together, the other a move of the record alone.
    """
    if name is None or not Path(name).is_dir():
        return None
    place = Path(name).resolve()
    return {"relative": os.path.relpath(place, root.resolve()), "absolute": str(place)}


def recall(name: str, root: Path, kept: Mapping[str, Any] | None) -> str:
    """Where a folder is that a record in the folder ``root`` names, from whatever folder it is asked.

    Args:
        kept: what :func:`remember` made; None in records from before there was such a thing, and of Hub ids.

    Returns:
        the folder; where it is not found, a path that is no Hub id if it once was a folder, else ``name``.
    """
    if kept is None:
        above = [] if Path(name).is_absolute() else [parent / name for parent in root.resolve().parents]
        return next((str(place) for place in (Path(name), *above) if place.is_dir()), name)
    places = (Path(kept["absolute"]), root / kept["relative"])
    found = next((place.resolve() for place in places if place.is_dir()), None)
    if found is None:
        return str(kept["absolute"])
    return name if Path(name).is_dir() and Path(name).samefile(found) else str(found)
