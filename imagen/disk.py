"""Files that are whole or not there, whenever the process dies, and a log that goes on where the work does."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Have the operating system put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8 or, where the process dies, leave the old one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)


def out_folder(name: str | Path) -> Path:
    """The folder that ``--out`` names, made where it is not there.

    Raises:
        ValueError: it cannot be made, or not be written to.
    """
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {str(name)!r} cannot be made: {error.strerror}; give a folder to write to") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--out {str(name)!r} cannot be written to; give another folder")
    return folder


class MetricsFile:
    """Append-only JSON lines, cut back to a resume point's step; a line's "clock" alone depends on the machine."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream, end = path.open("a+b"), 0
        self._stream.seek(0)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            for line in self._stream:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
                end += len(line)
        self._stream.truncate(end)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line and hand it to the operating system."""
        self._stream.write(json.dumps(record).encode() + b"\n")
        self._stream.flush()

    def sync(self) -> None:
        """Have everything written so far on the disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._stream.close()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: ValueError, naming the file, where it cannot be read or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content
