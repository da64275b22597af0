"""Choose guidance and steps of one stage: alignment on a grid, on prompts that no reported figure uses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from imagen.evaluation.alignment import add_sampling_arguments, fact_shares, judge_all, recorded, shares
from imagen.evaluation.generate import load, progress_line, sample
from imagen.evaluation.report import note, provenance, table, write_json
from imagen.evaluation.stats import Share
from imagen.evaluation.suites import SuiteName, suite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; here --steps and --guidance are the values to try on ``--stage``."""
    add_sampling_arguments(parser)
    parser.add_argument("--split", choices=get_args(SuiteName), default="tune", help="which prompts (default tune)")
    parser.add_argument("--size", type=int, default=256, help="side of the judged pictures in pixels (default 256)")
    parser.add_argument("--num", type=int, default=40, help="prompts per setting (default 40)")
    parser.add_argument("--stage", type=int, help="size of the stage whose settings are varied (default: --size)")
    parser.add_argument("--out", type=Path, default=Path("results/sweep"), help="folder of the JSON and the plot")


def run(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Sample and judge every pair of settings, print the table, write ``sweep.json`` and ``sweep.png``."""
    from imagen.evaluation.curves import plot_sweep

    prompts = suite(args.split, args.num, args.seed)
    pipe = load(args.model, args.device, args.sampler)
    stage = args.stage or args.size
    defaults = {d.size: d for d in pipe.stage_defaults.values()}
    if stage not in defaults or stage > args.size:
        made = ", ".join(str(size) for size in defaults)
        raise ValueError(
            f"--stage is {stage}; this model has the stages {made}, and it must not exceed --size {args.size}"
        )
    cells: list[dict[str, Any]] = []
    rows = [("steps", "guidance", "every fact right, 95 % interval")]
    for steps in args.steps or [defaults[stage].num_inference_steps]:
        for guidance in args.guidance or [defaults[stage].guidance_scale]:
            settings = {"num_inference_steps": {stage: steps}, "guidance_scale": {stage: guidance}}
            label = progress_line(f"steps {steps}, guidance {guidance:g}")
            pictures = sample(pipe, prompts, args.size, settings, args.batch_size, progress=label)[args.size]
            judged = judge_all(prompts, pictures)
            found: dict[str, Share] = shares(judged)
            rows.append((str(steps), f"{guidance:g}", str(found["overall"])))
            cells.append(
                {
                    "steps": steps,
                    "guidance": guidance,
                    "shares": {name: share.to_json() for name, share in found.items()},
                    "facts": {name: share.to_json() for name, share in fact_shares(judged).items()},
                }
            )
    print(f"{args.split}, {args.size} px, settings of the {stage} px stage\n\n{table(rows)}")
    content = {"kind": "sweep", **provenance(command), "settings": recorded(args, pipe), "stage": stage, "cells": cells}
    write_json(args.out / "sweep.json", content)
    plot_sweep(content, args.out / "sweep.png")
    note(f"wrote {args.out / 'sweep.json'} and sweep.png beside it")
    return 0
