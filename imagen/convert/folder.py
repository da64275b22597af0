"""Folders that appear whole or not at all, and what travels with the weights."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imagen.convert.weights import Weights, copy_weights, read_json, write_json
from imagen.disk import filling

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
HARMLESS = {".json", ".txt", ".model", ".safetensors"}


def check_new(folder: Path) -> None:
    """Raises: ValueError unless ``folder`` is free: not there, or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is already there; give a new folder, or remove it first")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name (:func:`check_new`) when all went well and is removed when not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    with filling(partial):
        partial.chmod(0o755)  # mkdtemp's is for the owner alone
        yield partial
        partial.rename(folder)


def copy_component(source: Path, target: Path, weights: Weights | None) -> None:
    """Copy a component as it is: of one with weights its configuration and those, else all files but pickles."""
    target.mkdir(parents=True)
    if weights is not None:
        write_json(target / "config.json", read_json(source / "config.json"))
        copy_weights(weights, target)
        return
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in HARMLESS:
            shutil.copyfile(path, target / path.name)


def copy_licences(sources: Sequence[Path], target: Path) -> list[str]:
    """Copy licence files; where a second source has another text under the same name, both stay. Returns the names."""
    copied: dict[str, bytes] = {}
    for number, source in enumerate(sources, 1):
        for path in sorted(path for pattern in LICENCES for path in source.glob(pattern) if path.is_file()):
            text = path.read_bytes()
            name = path.name if copied.get(path.name, text) == text else f"{path.stem}-{number}{path.suffix}"
            copied[name] = text
            (target / name).write_bytes(text)
    return sorted(copied)
