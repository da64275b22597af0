"""Resume points that survive a kill at any moment.

A resume point is a folder `state/step-00001000` of files and a `state.json` that holds their sizes and checksums.
It is written under another name, synced to the disk and renamed, so a folder of that name is complete; a folder damaged
later is found by its checksums, set aside, and the one before is used.
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

from imagen.disk import sync, write_text

FORMAT_VERSION = 1
PREFIX, DAMAGED, PARTIAL = "step-", "damaged-", "partial-"


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
        for name, tensors in state.tensors.items():
            save_file({key: value.contiguous() for key, value in tensors.items()}, partial / f"{name}.safetensors")
        torch.save(dict(state.optimizer), partial / "optimizer.pt")
        files = sorted(partial.iterdir())
        for file in files:
            sync(file)
        record = {
            "format_version": FORMAT_VERSION,
            "step": state.step,
            "facts": dict(state.facts),
            "files": {file.name: checksum(file) for file in files},
        }
        write_text(partial / "state.json", json.dumps(record, indent=1))
        sync(partial)
        final = self.path(state.step)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        sync(self.root)
        self._prune()
        return final

    def newest(self) -> State | None:
        """The newest intact resume point, None where there is none; damaged ones are set aside with a warning."""
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                return self._load(path)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                aside = self.root / f"{DAMAGED}{step:08d}"
                warnings.warn(f"resume point {path} is damaged ({error}): using the one before it", stacklevel=2)
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        return None

    def _load(self, path: Path) -> State:
        record = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if record["format_version"] > FORMAT_VERSION:
            raise ValueError(f"format version {record['format_version']} is newer than this program's {FORMAT_VERSION}")
        for name, expected in record["files"].items():
            if checksum(path / name) != expected:
                raise ValueError(f"{name} is not what was written")
        names = [name for name in record["files"] if name.endswith(".safetensors")]
        return State(
            step=record["step"],
            tensors={name.removesuffix(".safetensors"): load_file(path / name) for name in names},
            optimizer=torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
            facts=record["facts"],
        )

    def _prune(self) -> None:
        for step in self.steps()[: -self.keep_last]:
            shutil.rmtree(self.path(step), ignore_errors=True)
        for pattern in (f"{DAMAGED}*", f"{PARTIAL}*"):
            for leftover in self.root.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)
