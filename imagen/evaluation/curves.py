"""Plots: loss curves of training runs, alignment over training steps, sweeps. matplotlib is imported where it draws."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen.evaluation.report import note


def read_metrics(path: Path, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of ``key`` in a ``metrics.jsonl``; lines without it (or with a non-finite value) are left out.

    Raises:
        ValueError: a line that is not JSON, or no line with the key.
    """
    steps, values = [], []
    keys: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {line[:60]!r}") from error
        keys |= set(entry)
        value = entry.get(key)
        if "step" in entry and isinstance(value, int | float) and np.isfinite(value):
            steps.append(float(entry["step"]))
            values.append(float(value))
    if not steps:
        raise ValueError(f"{path} has no values of {key!r} with a step; it has {', '.join(sorted(keys)) or 'nothing'}")
    return steps, values


def keys_under(path: Path, key: str) -> list[str]:
    """The keys that begin with ``key`` where that ends in "/", as in ``val_loss/``, in the file's order; or key itself.

    Raises:
        ValueError: no such key.
    """
    if not key.endswith("/"):
        return [key]
    lines = path.read_text(encoding="utf-8").splitlines()
    found = dict.fromkeys(name for line in lines if key in line for name in json.loads(line) if name.startswith(key))
    if not found:
        raise ValueError(f"{path} has no values that begin with {key!r}: was validation.every set in that run?")
    return list(found)


def read_alignment(path: Path) -> dict[str, Any]:
    """A result of the alignment command.

    Raises:
        ValueError: another kind of file, or one without a training step.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("kind") != "alignment":
        raise ValueError(f"{path} is not a result of the alignment command; expected its alignment.json")
    if content.get("train_step") is None:
        raise ValueError(f"{path} names no training step; run alignment with --train-step N for curves over training")
    return content


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Running mean over at most ``window`` earlier values, the present one included."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return [float(value) for value in (sums[ends] - sums[starts]) / (ends - starts)]


def _axes(path: Path, draw: Any) -> None:
    """Let ``draw(axes)`` fill one plot and save it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def plot_metrics(runs: Mapping[str, tuple[list[float], list[float]]], key: str, window: int, path: Path) -> None:
    """One smoothed curve a run over the raw values; ``runs`` maps labels to steps and values."""

    def draw(axes: Any) -> None:
        for label, (steps, values) in runs.items():
            (line,) = axes.plot(steps, smoothed(values, window), label=label, linewidth=1.5)
            axes.plot(steps, values, color=line.get_color(), alpha=0.2, linewidth=0.7)
        axes.set(xlabel="training step", ylabel=key)
        if all(value > 0 for _, values in runs.values() for value in values):
            axes.set_yscale("log")

    _axes(path, draw)


def plot_alignment(results: Sequence[dict[str, Any]], size: str, path: Path) -> None:
    """Share of pictures with every fact right over training steps, by category, with the interval of the whole."""
    ordered = sorted(results, key=lambda content: content["train_step"])
    steps = [content["train_step"] for content in ordered]
    tables = [content["results"][size]["shares"] for content in ordered]

    def draw(axes: Any) -> None:
        for name in tables[0]:
            values = [100 * entry[name]["share"] for entry in tables]
            axes.plot(steps, values, label=name, marker="o", markersize=3, linewidth=2.5 if name == "overall" else 1)
        low, high = ([100 * entry["overall"]["interval"][side] for entry in tables] for side in (0, 1))
        axes.fill_between(steps, low, high, alpha=0.15)
        axes.set(xlabel="training step", ylabel=f"every fact right at {size} px, %", ylim=(-2, 102))

    _axes(path, draw)


def plot_sweep(content: dict[str, Any], path: Path) -> None:
    """Alignment over guidance, one line per number of steps, with 95 % intervals."""

    def draw(axes: Any) -> None:
        for steps in sorted({cell["steps"] for cell in content["cells"]}):
            cells = sorted((c for c in content["cells"] if c["steps"] == steps), key=lambda cell: cell["guidance"])
            shares = [cell["shares"]["overall"] for cell in cells]
            middle = np.array([100 * share["share"] for share in shares])
            ends = np.array([[100 * bound for bound in share["interval"]] for share in shares]).T
            below_above = np.maximum([middle - ends[0], ends[1] - middle], 0.0)
            axes.errorbar(
                [c["guidance"] for c in cells], middle, below_above, label=f"{steps} steps", marker="o", capsize=3
            )
        axes.set(
            xlabel=f"guidance scale of the {content['stage']} px stage", ylabel="every fact right, %", ylim=(-2, 102)
        )

    _axes(path, draw)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--metrics", type=Path, nargs="+", default=[], help="metrics.jsonl of one or more runs")
    parser.add_argument(
        "--key",
        default="loss",
        help="which value of the metrics is drawn (default loss); val_loss/ draws all that begin so",
    )
    parser.add_argument("--window", type=int, default=50, help="log lines the curve is averaged over (default 50)")
    parser.add_argument(
        "--alignment", type=Path, nargs="+", default=[], help="alignment.json files over training steps"
    )
    parser.add_argument("--size", type=int, default=256, help="pictures' side in the alignment files (default 256)")
    parser.add_argument("--out", type=Path, default=Path("results/curves"), help="folder of the plots")


def run(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Draw ``KEY.png`` from metrics and ``alignment.png`` from alignment results."""
    if not (args.metrics or args.alignment):
        raise ValueError("nothing to draw: give --metrics run/metrics.jsonl ... or --alignment alignment.json ...")
    if args.window < 1:
        raise ValueError(f"--window is {args.window}; expected at least 1")
    if args.metrics:
        runs: dict[str, tuple[list[float], list[float]]] = {}
        for path in args.metrics:
            for key in keys_under(path, args.key):
                label = str(path.parent.name or path) + key.removeprefix(args.key).replace("log_snr_", "  log SNR ")
                runs[label] = read_metrics(path, key)
        name = args.key.rstrip("/") + ("_each" if args.key.endswith("/") else "")
        plot_metrics(runs, args.key, args.window, args.out / f"{name}.png")
        note(f"wrote {args.out / f'{name}.png'}")
    if args.alignment:
        results = [read_alignment(path) for path in args.alignment]
        lacking = [path for path, r in zip(args.alignment, results, strict=True) if str(args.size) not in r["results"]]
        if lacking:
            raise ValueError(f"{lacking[0]} has no pictures of {args.size} px; choose another --size")
        plot_alignment(results, str(args.size), args.out / "alignment.png")
        note(f"wrote {args.out / 'alignment.png'}")
    return 0
