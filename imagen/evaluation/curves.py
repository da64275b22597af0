"""Plots: loss curves of training runs, alignment over training steps, sweeps. matplotlib is imported where it draws."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from imagen.disk import whole
from imagen.evaluation.report import note
from imagen.evaluation.stats import Share

Curve = tuple[list[float], list[float]]
"""Steps and values."""


def read_metrics(path: Path, key: str) -> dict[str, Curve]:
    """The curve of ``key`` in a ``metrics.jsonl``; where it ends in "/", as ``val_loss/``, of every key that begins so.

    Lines without it (or with a non-finite value) are left out; keys stand in the file's order.

    Raises:
        ValueError: a line that is not JSON, or no line with the key.
    """
    curves: dict[str, Curve] = defaultdict(lambda: ([], []))
    keys: set[str] = set()
    for number, line in enumerate(_text(path).splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {line[:60]!r}") from error
        keys |= set(entry)
        for name, value in entry.items():
            wanted = name.startswith(key) if key.endswith("/") else name == key
            if wanted and "step" in entry and isinstance(value, int | float) and np.isfinite(value):
                curves[name][0].append(float(entry["step"]))
                curves[name][1].append(float(value))
    if not curves:
        kind = "that begin with" if key.endswith("/") else "of"
        hint = ": was validation.every set in that run?" if key.endswith("/") else ""
        has = ", ".join(sorted(keys)) or "nothing"
        raise ValueError(f"{path} has no values {kind} {key!r} with a step; it has {has}{hint}")
    return dict(curves)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def read_alignment(path: Path) -> dict[str, Any]:
    """A result of the alignment command.

    Raises:
        ValueError: another kind of file, or one without a training step.
    """
    content = json.loads(_text(path))
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


def require_matplotlib() -> None:
    """Raises ValueError, with how to install it, where matplotlib is not there."""
    if find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib, which is not installed: pip install -c constraints.txt -e '.[eval]'")


def is_noisy(key: str) -> bool:
    """Whether each value is of other pictures and noise, so that the running mean says more: loss, grad_norm.

    A held-out loss is of the same ones every time, and a learning rate is what it is.
    """
    return key.startswith(("loss", "grad_norm"))


@contextmanager
def _axes(path: Path, **labels: Any) -> Iterator[Any]:
    """One plot to fill, which is then saved; ``labels`` as of matplotlib's ``Axes.set``."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    yield axes
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def plot_metrics(runs: Mapping[str, Curve], key: str, window: int, path: Path) -> None:
    """A curve a run, where values are noisy smoothed over the raw ones; ``runs``: labels to steps and values."""
    with _axes(path, xlabel="training step", ylabel=key) as axes:
        for label, (steps, values) in runs.items():
            if not is_noisy(key):
                axes.plot(steps, values, label=label, linewidth=1.5, marker="o", markersize=3)
                continue
            (line,) = axes.plot(steps, smoothed(values, window), label=label, linewidth=1.5)
            axes.plot(steps, values, color=line.get_color(), alpha=0.2, linewidth=0.7)
        if all(value > 0 for _, values in runs.values() for value in values):
            axes.set_yscale("log")


def plot_alignment(results: Sequence[dict[str, Any]], size: int, path: Path) -> None:
    """Share of pictures with every fact right over training steps, by category, with the interval of the whole."""
    ordered = sorted(results, key=lambda content: content["train_step"])
    steps = [content["train_step"] for content in ordered]
    tables = [content["results"][str(size)]["shares"] for content in ordered]
    with _axes(path, xlabel="training step", ylabel=f"every fact right at {size} px, %", ylim=(-2, 102)) as axes:
        for name in tables[0]:
            values = [100 * entry[name]["share"] for entry in tables]
            axes.plot(steps, values, label=name, marker="o", markersize=3, linewidth=2.5 if name == "overall" else 1)
        low, high = ([100 * entry["overall"]["interval"][side] for entry in tables] for side in (0, 1))
        axes.fill_between(steps, low, high, alpha=0.15)


def plot_sweep(cells: Sequence[dict[str, Any]], stage: int, path: Path) -> None:
    """Alignment over guidance, one line per number of steps, with 95 % intervals."""
    label = f"guidance scale of the {stage} px stage"
    with _axes(path, xlabel=label, ylabel="every fact right, %", ylim=(-2, 102)) as axes:
        for steps in dict.fromkeys(cell["steps"] for cell in cells):
            row = sorted((c for c in cells if c["steps"] == steps), key=lambda cell: cell["guidance"])
            shares: list[Share] = [cell["shares"]["overall"] for cell in row]
            middle = np.array([100 * share.value for share in shares])
            low, high = 100 * np.array([share.interval for share in shares]).T
            below_above = np.maximum([middle - low, high - middle], 0.0)
            scales = [cell["guidance"] for cell in row]
            axes.errorbar(scales, middle, below_above, label=f"{steps} steps", marker="o", capsize=3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("--metrics", type=Path, nargs="+", default=[], help="metrics.jsonl of one or more runs")
    told = "which value of the metrics is drawn (default loss); val_loss/ draws all that begin so"
    add("--key", default="loss", help=told)
    add(
        "--window",
        type=int,
        default=50,
        help="log lines that loss and grad_norm are averaged over (default 50); others are drawn as they are",
    )
    add("--alignment", type=Path, nargs="+", default=[], help="alignment.json files over training steps")
    add("--size", type=int, default=256, help="pictures' side in the alignment files (default 256)")


def run_names(paths: Sequence[Path]) -> list[str]:
    """Names of the runs whose metrics files these are: ends of their folders' paths, as long as tells them apart.

    Raises:
        ValueError: a file that is given twice.
    """
    folders = [path.absolute().parent for path in paths]
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len({*names}) == len(names):
            return names
    twice = next(folder for number, folder in enumerate(folders) if folder in folders[:number])
    raise ValueError(f"--metrics has two files of the run {str(twice)!r}: give one of each run")


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Draw ``KEY.png`` from metrics and ``alignment.png`` from alignment results."""
    if not (args.metrics or args.alignment):
        raise ValueError("nothing to draw: give --metrics run/metrics.jsonl ... or --alignment alignment.json ...")
    if args.window < 1:
        raise ValueError(f"--window is {args.window}; expected at least 1")
    require_matplotlib()
    if args.metrics:
        runs: dict[str, Curve] = {}
        for path, name in zip(args.metrics, run_names(args.metrics), strict=True):
            for key, curve in read_metrics(path, args.key).items():
                label = name + key.removeprefix(args.key).replace("log_snr_", "  log SNR ")
                runs[label] = curve
        plot = args.out / (args.key.removesuffix("/") + ("_each.png" if args.key.endswith("/") else ".png"))
        plot_metrics(runs, args.key, args.window, plot)
        note(f"wrote {plot}")
    if args.alignment:
        results = [read_alignment(path) for path in args.alignment]
        lacking = [path for path, r in zip(args.alignment, results, strict=True) if str(args.size) not in r["results"]]
        if lacking:
            raise ValueError(f"{lacking[0]} has no pictures of {args.size} px; choose another --size")
        plot_alignment(results, args.size, args.out / "alignment.png")
        note(f"wrote {args.out / 'alignment.png'}")
