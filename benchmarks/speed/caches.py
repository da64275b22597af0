"""What torch has compiled, kept in files for the next run: compiling is most of a short one."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import torch

#: Most bytes of a file; what brings files back from a card's machine may take no larger ones.
PART = 15 * 2**20
MOST_PARTS = 4


def load(folder: Path | None) -> str:
    """Take over the caches in a folder that an earlier run of this program wrote; returns what to tell of it."""
    parts = [] if folder is None else sorted(folder.glob("compiled-*.bin"))
    if not parts:
        return ""
    torch.compiler.load_cache_artifacts(zlib.decompress(b"".join(part.read_bytes() for part in parts)))
    return f"compile caches: {len(parts)} files read from {folder}"


def save(folder: Path | None) -> str:
    """Write all that this process has compiled so far, in parts; returns what to tell of it."""
    made = None
    if folder is not None and "torch._dynamo" in sys.modules:
        made = torch.compiler.save_cache_artifacts()
    if folder is None or made is None:
        return ""
    content = zlib.compress(made[0])  # to a seventh, of what was seen on a card
    if len(content) > PART * MOST_PARTS:
        return f"compile caches: {len(content) / 2**20:.0f} MiB, too many to keep"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("compiled-*.bin"):
        old.unlink()
    for number, start in enumerate(range(0, len(content), PART)):
        (folder / f"compiled-{number}.bin").write_bytes(content[start : start + PART])
    return f"compile caches: {len(content) / 2**20:.1f} MiB written to {folder}"
