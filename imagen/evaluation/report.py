"""What every evaluation writes: a JSON file that says how it was made, text tables, and contact sheets to look at."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

FORMAT_VERSION = 1
_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "pillow")
_GOOD, _BAD, _PLAIN = (30, 150, 60), (210, 40, 40), (150, 150, 150)


def _commit() -> str | None:
    """The checkout's commit, with "+changes" if tracked files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        run = [
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0].stdout.strip() + ("+changes" if run[1].stdout.strip() else "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """How a result came about: command, time, commit, versions of the libraries, hardware."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "format_version": FORMAT_VERSION,
        "command": shlex.join(["python", "-m", "imagen.evaluation", *command]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "hardware": {"cpu": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpus},
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text (the first is the head) as aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


@dataclass(frozen=True)
class Tile:
    """A picture of a contact sheet; ``ok`` frames it green or red, None gray."""

    picture: Image.Image
    text: str
    ok: bool | None = None


def contact_sheet(tiles: Sequence[Tile], columns: int = 10, side: int = 160) -> Image.Image:
    """All tiles in reading order, each with its text below.

    Raises:
        ValueError: no tile.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one picture")
    font = ImageFont.load_default(size=11)
    columns = min(columns, len(tiles))
    lines, frame, gap = 4, 4, 6
    width, height = side + 2 * frame + gap, side + 2 * frame + lines * 13 + gap
    sheet = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        x, y = (index % columns) * width + gap // 2, (index // columns) * height + gap // 2
        color = _PLAIN if tile.ok is None else _GOOD if tile.ok else _BAD
        draw.rectangle((x, y, x + side + 2 * frame - 1, y + side + 2 * frame - 1), fill=color)
        smaller = tile.picture.width > side
        how = Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST
        sheet.paste(tile.picture.convert("RGB").resize((side, side), how), (x + frame, y + frame))
        text = textwrap.wrap(tile.text, width=side // 6)[:lines]
        draw.multiline_text((x + frame, y + side + 2 * frame), "\n".join(text), fill=(0, 0, 0), font=font, spacing=1)
    return sheet


def save_sheet(path: Path, tiles: Sequence[Tile], columns: int = 10, side: int = 160) -> None:
    """Write a contact sheet as PNG; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(tiles, columns, side).save(path)


def note(text: str) -> None:
    """A line for the person at the terminal, kept apart from the tables on stdout."""
    print(text, file=sys.stderr, flush=True)
