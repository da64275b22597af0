"""Resume points that survive a kill at any moment.

A resume point is a folder `state/step-00001000` of files and a `state.json` that holds their sizes and checksums.
It is written under another name, synced to the disk and renamed, so a folder of that name is complete; a folder damaged
later is found by its checksums, set aside, and the one before is used. Where none is left, or the disk does not answer,
nothing is touched and the run does not start: beginning anew is for its owner to decide.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imagen.disk import filling, sync, write_text
from imagen.errors import ConfigError

FORMAT_VERSION = 1
PREFIX, DAMAGED, PARTIAL = "step-", "damaged-", "partial-"


class Damaged(Exception):
    """A resume point is not what was written."""


@dataclass(frozen=True)
class State:
    """A resume point in memory: the step it was taken after, named tensors, optimizer state and plain facts (JSON)."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    optimizer: Mapping[str, Any]
    facts: Mapping[str, Any]


def checksum(path: Path) -> list[int]:
    """[size in bytes, CRC-32] of a file."""
    crc, size = 0, 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return [size, crc]


class StateFolder:
    """The resume points of one run.

    Args:
        root: run_dir/state.
        keep_last: newest resume points kept.
    """

    def __init__(self, root: Path, keep_last: int = 2) -> None:
        self.root, self.keep_last = root, keep_last

    def steps(self) -> list[int]:
        """The steps that have a resume point, ascending."""
        names = [p.name[len(PREFIX) :] for p in self.root.glob(f"{PREFIX}*")] if self.root.is_dir() else []
        return sorted(int(name) for name in names if name.isdigit())

    def path(self, step: int) -> Path:
        """Where the resume point of a step lies."""
        return self.root / f"{PREFIX}{step:08d}"

    def save(self, state: State) -> Path:
        """Write a resume point, then remove all but the newest `keep_last`."""
        self.root.mkdir(parents=True, exist_ok=True)
        partial = self.root / f"{PARTIAL}{state.step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        final = self.path(state.step)
        with filling(partial):
            self._fill(partial, state)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        sync(self.root)
        self._prune()
        return final

    def _fill(self, partial: Path, state: State) -> None:
        for name, tensors in state.tensors.items():
            save_file({key: value.contiguous() for key, value in tensors.items()}, partial / f"{name}.safetensors")
        torch.save(dict(state.optimizer), partial / "optimizer.pt")
        files = sorted(partial.iterdir())
        for file in files:
            sync(file)
        sums = {file.name: checksum(file) for file in files}
        record = {"format_version": FORMAT_VERSION, "step": state.step, "facts": dict(state.facts), "files": sums}
        write_text(partial / "state.json", json.dumps(record, indent=1))
        sync(partial)

    def newest(self) -> State | None:
        """The newest intact resume point, None where there is none; damaged ones after it are set aside with a warning.

        Raises:
            ConfigError: all are damaged, the newest whole one is of a newer program, or it cannot be read just now.
        """
        damaged: dict[int, Damaged] = {}
        for step in reversed(self.steps()):
            try:
                found = self._load(self.path(step))
            except Damaged as error:
                damaged[step] = error
                continue
            except OSError as error:
                raise ConfigError(f"resume point {self.path(step)} cannot be read ({error}): try again") from error
            for other, reason in damaged.items():
                self._set_aside(other, reason)
            return found
        if damaged:
            step, reason = next(iter(damaged.items()))
            raise ConfigError(
                f"every resume point in {self.root} is damaged (step {step}: {reason}): restore one, or remove that "
                "folder to begin anew"
            )
        return None

    def _set_aside(self, step: int, reason: Damaged) -> None:
        path, aside = self.path(step), self.root / f"{DAMAGED}{step:08d}"
        warnings.warn(f"resume point {path} is damaged ({reason}): using the one before it", stacklevel=3)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)

    def _load(self, path: Path) -> State:
        try:
            record = json.loads((path / "state.json").read_text(encoding="utf-8"))
            version, files = record["format_version"], record["files"]
            changed = [name for name, expected in files.items() if checksum(path / name) != expected]
        except FileNotFoundError as error:
            raise Damaged(f"{Path(error.filename).name} is missing") from error
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(f"state.json is not what was written: {error}") from error
        if version > FORMAT_VERSION:
            raise ConfigError(f"{path} has format version {version}, newer than {FORMAT_VERSION}: update imagen")
        if changed:
            raise Damaged(f"{changed[0]} is not what was written")
        tensors = {Path(name).stem: load_file(path / name) for name in files if name.endswith(".safetensors")}
        optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        return State(record["step"], tensors, optimizer, record["facts"])

    def _prune(self) -> None:
        for step in self.steps()[: -self.keep_last]:
            shutil.rmtree(self.path(step), ignore_errors=True)
        for pattern in (f"{DAMAGED}*", f"{PARTIAL}*"):
            for leftover in self.root.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)
