"""What every evaluation writes: a JSON file that says how it was made, text tables, and contact sheets to look at."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont

from imagen.disk import whole, write_text

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline

FORMAT_VERSION = 1
_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "pillow")
_FRAMES = {True: (30, 150, 60), False: (210, 40, 40), None: (150, 150, 150)}


def _commit() -> str | None:
    """The checkout's commit, with "+changes" if tracked files differ from it; None outside a git checkout."""
    told = ("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")
    command = ["git", "-C", str(Path(__file__).resolve().parents[2]), *told]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    """The processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """How a result came about: command, time, commit, versions of the libraries, hardware."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "format_version": FORMAT_VERSION,
        "command": shlex.join(["python", "-m", "imagen.evaluation", *command]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        "hardware": {"cpu": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpus},
    }


def plain(value: Any) -> Any:
    """What JSON can hold: our results know how, paths are text, and so is "inf"; what is no number is null."""
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def write_result(
    args: argparse.Namespace, command: Sequence[str], pipe: ImagenPipeline | None = None, **result: Any
) -> None:
    """Write ``COMMAND.json``: how it came about, the options, what each stage of the pipeline that sampled does by
    itself, and the result.
    """
    settings: dict[str, Any] = {"options": vars(args)}
    if pipe is not None:
        settings["stages"] = {slot: defaults.to_dict() for slot, defaults in pipe.stage_defaults.items()}
    content = {"kind": args.command, **provenance(command), "settings": settings, **result}
    path = args.out / f"{args.command}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
    note(f"wrote {path} and the pictures beside it")


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows (the first is the head) as aligned columns of text."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


@dataclass(frozen=True)
class Tile:
    """A picture of a contact sheet; ``ok`` frames it green or red, None gray."""

    picture: Image.Image
    text: str
    ok: bool | None = None


def save_sheet(path: Path, tiles: Sequence[Tile], columns: int = 10, side: int = 160) -> None:
    """Write all tiles in reading order, each with its text below, as PNG; folders are made as needed."""
    font = ImageFont.load_default(size=11)
    columns = min(columns, len(tiles))
    lines, frame, gap = 4, 4, 6
    width, height = side + 2 * frame + gap, side + 2 * frame + lines * 13 + gap
    sheet = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        x, y = (index % columns) * width + gap // 2, (index // columns) * height + gap // 2
        draw.rectangle((x, y, x + side + 2 * frame - 1, y + side + 2 * frame - 1), fill=_FRAMES[tile.ok])
        how = Image.Resampling.LANCZOS if tile.picture.width > side else Image.Resampling.NEAREST
        sheet.paste(tile.picture.convert("RGB").resize((side, side), how), (x + frame, y + frame))
        text = textwrap.wrap(tile.text, width=side // 6)[:lines]
        draw.multiline_text((x + frame, y + side + 2 * frame), "\n".join(text), fill=(0, 0, 0), font=font, spacing=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        sheet.save(partial, format="PNG")


def note(text: str) -> None:
    """A line for the person at the terminal, kept apart from the tables on stdout."""
    print(text, file=sys.stderr, flush=True)
