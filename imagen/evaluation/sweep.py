"""Choose guidance and steps of one stage: alignment on a grid, on prompts that no reported figure uses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from typing import Any

from imagen.evaluation.alignment import judge_all, summary
from imagen.evaluation.curves import plot_sweep, require_matplotlib
from imagen.evaluation.generate import add_sampling_arguments, check_calls, load, sample
from imagen.evaluation.report import table, write_result
from imagen.evaluation.suites import suite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; here --steps and --guidance are the values to try on ``--stage``."""
    add_sampling_arguments(parser, num=40, split="tune")
    parser.add_argument("--size", type=int, default=256, help="side of the judged pictures in pixels (default 256)")
    parser.add_argument("--stage", type=int, help="size of the stage whose settings are varied (default: --size)")


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Sample and judge every pair of settings, print the table, write ``sweep.json`` and ``sweep.png``."""
    require_matplotlib()
    prompts = suite(args.split, args.num, args.seed)
    pipe = load(args)
    stage = args.stage or args.size
    defaults = {d.size: d for d in pipe.stage_defaults.values()}
    if stage not in defaults or stage > args.size:
        made = ", ".join(map(str, defaults))
        raise ValueError(
            f"--stage is {stage}; this model has the stages {made}, and it must not exceed --size {args.size}"
        )
    cells: list[dict[str, Any]] = []
    pairs = list(
        product(args.steps or [defaults[stage].num_inference_steps], args.guidance or [defaults[stage].guidance_scale])
    )
    every = [{"num_inference_steps": {stage: steps}, "guidance_scale": {stage: scale}} for steps, scale in pairs]
    check_calls(pipe, [(args.size, settings) for settings in every], args.batch_size)
    for (steps, guidance), settings in zip(pairs, every, strict=True):
        label = f"steps {steps}, guidance {guidance:g}"
        pictures = sample(pipe, prompts, args.size, settings, args.batch_size, label=label)[args.size]
        cells.append({"steps": steps, "guidance": guidance, **summary(judge_all(prompts, pictures))})
    rows = [(cell["steps"], f"{cell['guidance']:g}", cell["shares"]["overall"]) for cell in cells]
    print(f"{args.split}, {args.size} px, settings of the {stage} px stage\n")
    print(table([("steps", "guidance", "every fact right, 95 % interval"), *rows]))
    plot_sweep(cells, stage, args.out / "sweep.png")
    write_result(args, command, pipe, stage=stage, cells=cells)
