"""Files that are whole or not there, whenever the process dies, and a log that goes on where the work does."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK = ".in-use"
_HELD: set[Path] = set()  # locks that this process has


def sync(path: Path) -> None:
    """Have the operating system put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8 or, where the process dies, leave the old one."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to fill under another name, which takes ``path`` when all went well; else it is removed."""
    partial = path.with_name(f"{path.name}.partial")
    with filling(partial):
        yield partial
        sync(partial)
        partial.replace(path)


def out_folder(name: str | Path) -> Path:
    """The folder that ``--out`` names, made where it is not there.

    Raises:
        ValueError: it cannot be made, or not be written to.
    """
    folder = Path(name)
    if not str(name):
        raise ValueError("--out is empty (''); give a folder to write to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {str(name)!r} cannot be made: {error.strerror}; give a folder to write to") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--out {str(name)!r} cannot be written to; give another folder")
    return folder


@contextmanager
def filling(partial: Path) -> Iterator[None]:
    """Within it a file or folder is filled that will be renamed when it is whole; where that fails it is removed.

    Raises:
        OSError: the disk is full, say; what safetensors, tokenizers and torch raise for it becomes this.
    """
    try:
        yield
    except BaseException as error:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        told = " ".join(str(error).split())
        bare = type(error) is Exception  # of tokenizers
        of_torch = "PytorchStreamWriter" in told or "inline_container" in told
        if type(error).__name__ == "SafetensorError" or of_torch or bare:
            raise OSError(f"{partial.parent} cannot be written to: {told}") from error
        raise


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Keep a folder, made where it is not there, for one process; others are told whose it is.

    The system lets go of it when the process ends, however it ends, and so does a file server when a machine is gone.
    A folder that was left empty is removed.

    Raises:
        ValueError: another process, named by number and machine, has it.
        OSError: it cannot be made or written to.
    """
    import fcntl

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; give a folder to write to")
    folder.mkdir(parents=True, exist_ok=True)
    path, here = folder.resolve() / LOCK, f"process {os.getpid()} on {platform.node()}"
    busy = f"{str(folder)!r} is being written to by {{}}: wait for it to end, or stop it"
    if path in _HELD:  # a lock is the process's: it would be given once more, and closing the file would lose it
        raise ValueError(busy.format(here))
    while True:
        stream = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, no child that outlives us keeps it
        except (BlockingIOError, PermissionError):
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            stream.close()
            raise ValueError(busy.format(owner)) from None
        except OSError as error:  # a file system without locks
            told = f"{str(folder)!r} cannot be locked ({error}): see that no other process writes to it"
            warnings.warn(told, stacklevel=3)
        if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            break
        stream.close()  # of an owner that ended just now, and removed it
    _HELD.add(path)
    try:
        stream.truncate(0)
        stream.write(here)
        stream.flush()
        yield
    finally:
        _HELD.discard(path)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what a full disk refused is tried once more, in vain
            stream.close()
        with contextlib.suppress(OSError):
            folder.rmdir()


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
