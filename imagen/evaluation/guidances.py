"""Compare guidances of the base stage: the same prompts and seeds with each, judged at the base stage's size.

A row is a guidance and its scale. Beside the share of pictures with every fact right stand how many it mended and
spoiled against the first row, how far the colours of the objects are from those that the captions name, and how many
pictures the networks evaluated for each (a step of classifier-free guidance costs two).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from imagen.diffusion.guidance import parse_guidance
from imagen.evaluation.alignment import Judged, judge_all, summary
from imagen.evaluation.detector import COLORS
from imagen.evaluation.generate import add_sampling_arguments, check_calls, load, sample, sampling_settings
from imagen.evaluation.report import save_sheet, table, write_result
from imagen.evaluation.stats import Share
from imagen.evaluation.suites import suite
from imagen.stages.load import load_network

USUAL = ("cfg", "interval(low=-3)", "apg(eta=0)", "rescaled(phi=0.7)")


@dataclass(frozen=True)
class Row:
    """One guidance, judged."""

    method: str
    scale: float
    judged: Sequence[Judged]
    evaluations: float

    @property
    def right(self) -> list[bool]:
        """Whether every fact is right, picture by picture."""
        return [entry.verdict.ok for entry in self.judged]

    @property
    def color_error(self) -> float | None:
        """Median over the objects of how far they are from the named colour; None without any that counts."""
        errors = [error for entry in self.judged for error in color_errors(entry)]
        return float(np.median(errors)) if errors else None

    def to_json(self) -> dict[str, Any]:
        """The row and every single verdict."""
        own = {name: getattr(self, name) for name in ("method", "scale", "evaluations", "color_error")}
        return {**own, **summary(self.judged), "pictures": self.judged}


def color_errors(entry: Judged) -> list[float]:
    """How far each object of a picture is from the colour that its caption names: mean over the channels, 0 to 255.

    None of a caption with two things, whose objects could be exchanged.
    """
    things = entry.prompt.facts.things
    if len(things) > 1:
        return []
    wanted = np.array(COLORS[things[0].color], dtype=np.float64)
    return [float(np.abs(np.array(found.tone) - wanted).mean()) for found in entry.verdict.detection.objects]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; here --guidance are the scales to try with each method."""
    add_sampling_arguments(parser, num=200, split="tune")
    parser.add_argument("--weak", type=Path, help="folder of a weaker base network, for autoguidance (run/model/unet)")
    parser.add_argument("--methods", nargs="+", default=list(USUAL), help=f"guidances; default: {' '.join(USUAL)}")


@contextmanager
def counted(networks: Sequence[Any]) -> Iterator[list[int]]:
    """Counts the pictures that networks evaluate: the sum of the list that is given out."""
    rows: list[int] = []

    def count(_: Any, given: tuple[Any, ...]) -> None:
        if given:  # else the text alone
            rows.append(len(given[0]))

    hooks = [network.register_forward_pre_hook(count) for network in networks]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def compare(rows: Sequence[Row]) -> str:
    """The table."""
    head = ("guidance", "scale", "every fact right, 95 % interval", "mended / spoiled", "colour error")
    lines: list[tuple[object, ...]] = [(*head, "evaluations a picture")]
    for row in rows:
        changes = Counter(zip(rows[0].right, row.right, strict=True))
        mended = f"{changes[False, True]} / {changes[True, False]}"
        error = "-" if row.color_error is None else f"{row.color_error:.1f} / 255"
        lines.append((row.method, f"{row.scale:g}", Share.of(row.right), mended, error, f"{row.evaluations:.1f}"))
    return table(lines)


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Sample and judge every guidance, print the table, write ``guidances.json`` and a sheet of each."""
    methods = [str(parse_guidance(method)) for method in args.methods]
    prompts = suite(args.split, args.num, args.seed)
    pipe = load(args)
    base = pipe.stage_defaults.get("base")
    if base is None:
        raise ValueError(f"--model {args.model!r} has no base stage, whose guidance this compares")
    if args.weak is not None:
        pipe.register_modules(base_weak_unet=load_network(args.weak).to(pipe.device))
    networks = [network for network in (pipe.base_unet, pipe.base_weak_unet) if network is not None]
    rows: list[Row] = []
    pairs = list(product(methods, args.guidance or [base.guidance_scale]))
    every = [{**sampling_settings(args), "guidance": method, "guidance_scale": scale} for method, scale in pairs]
    check_calls(pipe, [(base.size, settings) for settings in every], args.batch_size)
    for (method, scale), settings in zip(pairs, every, strict=True):
        with counted(networks) as seen:
            label = f"{method}, scale {scale:g}"
            made = sample(pipe, prompts, base.size, settings, args.batch_size, label=label)[base.size]
        row = Row(method, scale, judge_all(prompts, made), sum(seen) / len(prompts))
        save_sheet(args.out / f"sheet_{len(rows)}.png", [entry.tile for entry in row.judged])
        rows.append(row)
    print(f"{args.split}, {base.size} px\n\n{compare(rows)}")
    write_result(args, command, pipe, rows=rows)
