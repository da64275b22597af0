"""Two folders of results, file by file: the largest difference and where it is.

Arrays and pictures must be the same to the bit; metrics, weights and settings to `TOLERANCE`, relative to max(1, |x|).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

TOLERANCE = 1e-12
EXACT = (".npy", ".png")


@dataclass(frozen=True)
class Row:
    """What became of one check.

    Attributes:
        numbers: numbers and words compared.
        largest: the largest difference (absolute for pictures, else relative to max(1, |x|)); inf where a number is
            missing or a word differs.
        first: where the first difference is, and of what; None where both sides are the same.
    """

    name: str
    numbers: int
    largest: float
    first: str | None


def compare(before: Path, after: Path) -> Row:
    """The results of one check on the two sides: folders of the same name."""
    for side, folder in (("before", before), ("after", after)):
        if not folder.is_dir():
            return Row(before.name, 0, math.inf, f"{side} did not get there")
        if (folder / "error.txt").exists():
            reason = (folder / "error.txt").read_text(encoding="utf-8").strip() or "no message"
            return Row(before.name, 0, math.inf, f"{side} fails: {reason.splitlines()[0]}")
    names = [{path.name for path in folder.iterdir()} for folder in (before, after)]
    numbers, largest, first = 0, 0.0, None
    if not names[0] & names[1] or names[0] ^ names[1]:
        odd = ", ".join(sorted(names[0] ^ names[1])) or "no file"
        largest, first = math.inf, f"{odd}: not on both sides"
    for name in sorted(names[0] & names[1]):
        one, two = (dict(read(folder / name)) for folder in (before, after))
        bound = 0.0 if Path(name).suffix in EXACT else TOLERANCE
        if name.endswith(".safetensors"):
            one = dict.fromkeys(two) | one  # settings and metrics may gain entries, weights may not
        for key, value in one.items():
            size, found = difference(value, two.get(key), relative=bound > 0)
            numbers, largest = numbers + size, max(largest, found)
            if found > bound and first is None:
                first = f"{name} {key}: {_short(value)} -> {_short(two.get(key))}"
    return Row(before.name, numbers, largest, first)


def difference(one: Any, two: Any, relative: bool) -> tuple[int, float]:
    """How many numbers there are, and the largest difference; inf for what cannot be compared."""
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        if one.shape != two.shape or one.dtype != two.dtype:
            return one.size, math.inf
        a, b = one.astype(np.float64), two.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            gap = np.where(same, 0.0, np.abs(a - b) / (np.maximum(1.0, np.abs(a)) if relative else 1.0))
        return one.size, float(np.nan_to_num(gap, nan=math.inf, posinf=math.inf).max(initial=0.0))
    if _is_number(one) and _is_number(two):
        return 1, difference(np.float64(one).reshape(1), np.float64(two).reshape(1), relative)[1]
    return 1, 0.0 if type(one) is type(two) and one == two else math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read(path: Path) -> Iterator[tuple[str, Any]]:
    """What a file holds: (where in it, an array, number or word)."""
    if path.suffix == ".npy":
        yield "array", np.load(path)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            yield "pixels", np.asarray(image)
    elif path.suffix == ".safetensors":
        yield from load_file(path).items()
    elif path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        yield "lines", len(lines)
        for number, line in enumerate(lines, 1):
            entries = json.loads(line)
            entries.pop("clock", None)  # alone depends on the machine
            yield from flatten(entries, f"line {number} ")
    elif path.suffix == ".json":
        yield from flatten(json.loads(path.read_text(encoding="utf-8")), "")
    else:
        yield "bytes", path.read_bytes()


def flatten(tree: Any, where: str) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of nested dictionaries and lists; an empty one is a leaf."""
    if isinstance(tree, Mapping | list) and tree:
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from flatten(value, f"{where}.{key}" if where and not where.endswith(" ") else f"{where}{key}")
    else:
        yield where, tree


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return "nothing" if value is None else repr(value)[:40]
