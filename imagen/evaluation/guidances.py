"""Compare guidances of the base stage: the same prompts and seeds with each, judged at the base stage's size.

A row is a guidance and its scale. Beside the share of pictures with every fact right stand how many it mended and
spoiled against the first row, how far the colours of the objects are from those that the captions name, and how many
pictures the networks evaluated for each (a step of classifier-free guidance costs two).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from imagen.diffusion.guidance import parse_guidance
from imagen.evaluation.alignment import Judged, judge_all, recorded, result_json
from imagen.evaluation.detector import COLORS
from imagen.evaluation.generate import load, progress_line, sample
from imagen.evaluation.report import Tile, note, provenance, save_sheet, table, write_json
from imagen.evaluation.stats import Share
from imagen.evaluation.suites import SuiteName, suite

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline

USUAL = ("cfg", "interval(low=-3)", "apg(eta=0)", "rescaled(phi=0.7)")


@dataclass(frozen=True)
class Row:
    """One guidance, judged."""

    method: str
    scale: float
    judged: Sequence[Judged]
    evaluations: float

    @property
    def color_errors(self) -> list[float]:
        """How far each object that a caption names alone is from its colour: mean over the channels, 0 to 255."""
        return [error for entry in self.judged for error in color_errors(entry)]


def color_errors(entry: Judged) -> list[float]:
    """Of the objects of one picture whose caption names one colour; a relation's two objects could be exchanged."""
    things = entry.prompt.facts.things
    if len(things) > 1:
        return []
    wanted = np.array(COLORS[things[0].color], dtype=np.float64)
    return [float(np.abs(np.array(found.tone) - wanted).mean()) for found in entry.verdict.detection.objects]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--model", required=True, help="pipeline folder or Hub id with a base stage")
    parser.add_argument("--weak", type=Path, help="folder of a weaker base network, for autoguidance (run/model/unet)")
    parser.add_argument("--methods", nargs="+", default=list(USUAL), help=f"guidances; default: {' '.join(USUAL)}")
    parser.add_argument("--guidance", type=float, nargs="+", help="scales to try with each; default: the stage's own")
    parser.add_argument("--split", choices=get_args(SuiteName), default="tune", help="which prompts (default tune)")
    parser.add_argument("--num", type=int, default=200, help="prompts, spread evenly over the categories (default 200)")
    parser.add_argument("--steps", type=int, help="of the base stage; default: its own")
    parser.add_argument("--sampler", help="of the base stage; default: its own")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first prompt; the others count up (default 0)")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts sampled at once (default 8)")
    parser.add_argument("--device", help="where to sample, such as cpu or cuda:1; default: a GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("results/guidances"), help="folder of the JSON and the sheets")


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
    lines = [
        (
            "guidance",
            "scale",
            "every fact right, 95 % interval",
            "mended / spoiled",
            "colour error",
            "evaluations a picture",
        )
    ]
    first = [entry.verdict.ok for entry in rows[0].judged]
    for row in rows:
        right = [entry.verdict.ok for entry in row.judged]
        mended = sum(now and not before for now, before in zip(right, first, strict=True))
        spoiled = sum(before and not now for now, before in zip(right, first, strict=True))
        errors = row.color_errors
        shown = f"{np.median(errors):.1f} / 255" if errors else "-"
        lines.append(
            (
                row.method,
                f"{row.scale:g}",
                str(Share.of(right)),
                f"{mended} / {spoiled}",
                shown,
                f"{row.evaluations:.1f}",
            )
        )
    return table(lines)


def run(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Sample and judge every guidance, print the table, write ``guidances.json`` and a sheet of each."""
    methods = [str(parse_guidance(method)) for method in args.methods]
    prompts = suite(args.split, args.num, args.seed)
    pipe = load(args.model, args.device, args.sampler)
    base = pipe.stage_defaults.get("base")
    if base is None:
        raise ValueError(f"--model {args.model!r} has no base stage, whose guidance this compares")
    if args.weak is not None:
        _load_weak(pipe, args.weak)
    networks = [network for network in (pipe.base_unet, pipe.base_weak_unet) if network is not None]
    rows: list[Row] = []
    for method in methods:
        for scale in args.guidance or [base.guidance_scale]:
            settings = {"guidance": method, "guidance_scale": scale, "num_inference_steps": args.steps}
            with counted(networks) as seen:
                label = progress_line(f"{method}, scale {scale:g}")
                made = sample(pipe, prompts, base.size, settings, args.batch_size, progress=label)[base.size]
            row = Row(method, scale, judge_all(prompts, made), sum(seen) / len(prompts))
            tiles: list[Tile] = [entry.tile(picture) for entry, picture in zip(row.judged, made, strict=True)]
            save_sheet(args.out / f"sheet_{len(rows)}.png", tiles)
            rows.append(row)
    print(f"{args.split}, {base.size} px\n\n{compare(rows)}")
    found = [
        {
            "method": row.method,
            "scale": row.scale,
            "evaluations": row.evaluations,
            "color_error": float(np.median(row.color_errors)) if row.color_errors else None,
            **result_json(row.judged),
        }
        for row in rows
    ]
    content = {"kind": "guidances", **provenance(command), "settings": recorded(args, pipe), "rows": found}
    write_json(args.out / "guidances.json", content)
    note(f"wrote {args.out / 'guidances.json'} and a sheet of each row beside it")
    return 0


def _load_weak(pipe: ImagenPipeline, folder: Path) -> None:
    from imagen.stages.load import load_network

    pipe.register_modules(base_weak_unet=load_network(folder).to(pipe.device))
