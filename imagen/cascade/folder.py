"""Model folders: found here or fetched from the Hub, and checked before anything heavy is loaded. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from imagen.cascade.stages import SLOTS, StageDefaults, read_stages

INDEX = "model_index.json"
PIPELINE_CLASS = "ImagenPipeline"
HUB_PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors", "*.md"]


def find_folder(
    name: str | Path,
    variant: str | None = None,
    skip: Iterable[str] = (),
    patterns: Sequence[str] = HUB_PATTERNS,
    **hub: Any,
) -> Path:
    """A model's folder: ``name`` itself, or the Hub's snapshot of that id (nothing pickled is fetched).

    diffusers' own download step refuses repositories whose components are classes of other packages, so a Hub id is
    fetched as it stands and then loaded like any folder.

    Args:
        variant: fetch these weights too (``fp16``: ``*.fp16.safetensors``); without it, none of any variant.
        skip: components that are not wanted; they are not fetched.
        patterns: of the files to fetch; none that ``skip`` and ``variant`` leave out is.
        hub: arguments of ``huggingface_hub.snapshot_download`` (revision, token, cache_dir, local_files_only, ...).

    Raises:
        ValueError: neither a folder nor an id that the Hub (or its cache here) could give.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    text = str(name)
    if folder.is_file():
        raise ValueError(f"model {text!r} is a file; give the folder that holds {INDEX}")
    if folder.is_absolute() or text.startswith(".") or text.count("/") != 1:
        raise ValueError(f"model {text!r}: no such folder; give a folder with {INDEX}, or a Hub id (owner/name)")
    from huggingface_hub import snapshot_download

    ignore = [f"{component}/*" for component in skip] + ([] if variant else ["*.*.safetensors"])
    try:
        return Path(snapshot_download(text, allow_patterns=list(patterns), ignore_patterns=ignore, **hub))
    except Exception as error:  # its own, httpx's and the system's errors: to the user all are one
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model {text!r} is no folder here and could not be fetched from the Hub: {reason}") from error


def read_index(folder: Path) -> dict[str, Any]:
    """The parsed ``model_index.json`` of a model folder.

    Raises:
        ValueError: it is missing, is not JSON, or belongs to another pipeline.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"model folder {str(folder)!r} holds no {INDEX}; give the folder of a saved pipeline"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model folder {str(folder)!r}: {INDEX} cannot be read ({error}); save the model again"
        ) from error
    if not isinstance(index, dict) or index.get("_class_name") != PIPELINE_CLASS:
        found = index.get("_class_name") if isinstance(index, dict) else type(index).__name__
        raise ValueError(
            f"model folder {str(folder)!r} holds a {found}, not an {PIPELINE_CLASS}; load it with its own class"
        )
    return index


def check_folder(folder: Path, skip: Iterable[str] = ()) -> dict[str, StageDefaults]:
    """Check that what the index lists is there, before anything loads.

    Returns:
        The defaults of the stages the folder holds (network and scheduler both), in the order of the cascade.

    Raises:
        ValueError: the index is unreadable or newer than this code, or a listed component has no folder or no weights.
    """
    index = read_index(folder)
    try:
        stages = read_stages(index.get("stages"), index.get("format_version"))
    except ValueError as error:
        raise ValueError(f"model folder {str(folder)!r}: {error}") from error
    listed = {k for k, v in index.items() if isinstance(v, list) and len(v) == 2 and v[0] is not None} - set(skip)
    for component in sorted(listed):
        place = folder / component
        if not place.is_dir():
            raise ValueError(f"model folder {str(folder)!r}: {component} is listed but {component}/ is missing")
        if component.endswith(("_unet", "text_encoder")) and not any(place.glob("*.safetensors")):
            raise ValueError(f"model folder {str(folder)!r}: {component}/ holds no *.safetensors weights")
    return {slot: stages[slot] for slot in SLOTS if {f"{slot}_unet", f"{slot}_scheduler"} <= listed}


def check_complete(place: Path, expected: Iterable[str]) -> None:
    """Check that a network's files hold its tensors: diffusers fills what is missing with whatever lies in memory.

    Args:
        place: folder of the network, of which all safetensors are looked at.
        expected: names of its tensors.

    Raises:
        ValueError: one is missing.
    """
    from safetensors import safe_open

    names: set[str] = set()
    for path in place.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            names.update(file.keys())
    missing = sorted(set(expected) - names)
    if missing:
        raise ValueError(f"{place} lacks {len(missing)} tensors of the network ({missing[0]}, ...); fetch it again")
