"""Compare samplers of the base stage at equal numbers of steps: on the same prompts and seeds, and on a Gaussian.

A row is a sampler with its options, written ``heun(use_karras_sigmas)`` or ``dpm++(solver_order=3)``. Beside the share
of pictures with every fact right stand how many it mended and spoiled against the first row, the 95 % interval of that
difference, and how far it ends from the exact solution where that is known: data of which every pixel is Gaussian.
Rows that are done stay in ``rows.jsonl``; the same command goes on behind them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen.diffusion.denoiser import Denoised
from imagen.diffusion.loop import StepRule, sample_loop
from imagen.diffusion.samplers import parse_sampler, resampled
from imagen.diffusion.schedules import alpha_sigma, level_log_snrs, log_snr_at
from imagen.evaluation.alignment import judge_all
from imagen.evaluation.generate import add_sampling_arguments, check_calls, load, sample, sampling_settings
from imagen.evaluation.report import note, save_sheet, table, write_result
from imagen.evaluation.stats import Share, paired_difference
from imagen.evaluation.suites import suite

SPACED = ("", "(use_karras_sigmas)", "(use_exponential_sigmas)")
USUAL = (
    *(f"{kind}{spaced}" for kind in ("euler", "heun", "dpm++", "singlestep", "unipc") for spaced in SPACED),
    *("ddim", "dpm++(use_lu_lambdas)", "dpm++(solver_order=3)"),
    *("ddpm", "dpm++(algorithm_type=sde-dpmsolver++)"),
)
DONE = "rows.jsonl"
MEAN, SPREAD = 0.3, (0.1, 0.5, 0.9)  # of the Gaussian pictures' pixels


@dataclass(frozen=True)
class Row:
    """One sampler at one number of steps: which pictures are right, and how far it ends from the exact ones."""

    sampler: str
    steps: int
    evaluations: int
    right: list[bool]
    deviation: float

    def to_json(self) -> dict[str, Any]:
        """All of it, and the share with its interval."""
        return {**vars(self), "share": Share.of(self.right)}


def deviation(scheduler: Any, steps: int) -> float:
    """Root mean square distance, after ``steps``, from where the exact probability-flow equation ends, for pictures of
    which every pixel is Gaussian. Of a sampler that adds noise: of the mean and the standard deviation it ends with.
    """
    table = level_log_snrs(scheduler)
    std = torch.tensor(SPREAD, dtype=torch.float64)[:, None, None].expand(3, 8, 8)

    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        alpha, sigma = (c[:, None, None, None] for c in alpha_sigma(log_snr_at(timestep, table)))
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x0 = MEAN + gain * (z - alpha * MEAN)
        return Denoised(x0, torch.full_like(x0, -1.0))

    z = torch.randn((64, *std.shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = alpha_sigma(table[-1])
    exact = MEAN + std * (z - alpha * MEAN) / (alpha**2 * std**2 + sigma**2).sqrt()
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(z))]
    out = sample_loop(x0_fn, z, StepRule(scheduler, steps), generators)
    if "ImagenDDPM" in type(scheduler).__name__ or "sde" in str(scheduler.config.get("algorithm_type")):
        ends = [torch.stack([x.mean(dim=(0, 2, 3)), x.std(dim=(0, 2, 3))]) for x in (out, exact)]
        return float((ends[0] - ends[1]).square().mean().sqrt())
    return float((out - exact).square().mean().sqrt())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; here --steps are the numbers to try."""
    add_sampling_arguments(parser, num=160, split="tune")
    parser.add_argument("--samplers", nargs="+", default=list(USUAL), help=f"default: {' '.join(USUAL)}")


def compare(rows: Sequence[Row]) -> str:
    """The table: each row against the first one of as many steps."""
    head = ("sampler", "steps", "evaluations", "every fact right, 95 % interval", "mended / spoiled", "difference")
    lines: list[tuple[object, ...]] = [(*head, "from the exact picture")]
    for row in rows:
        first = next(other for other in rows if other.steps == row.steps)
        low, high, mended, spoiled = paired_difference(first.right, row.right)
        difference = f"{100 * (mended - spoiled) / len(row.right):+5.1f} [{100 * low:+5.1f}, {100 * high:+5.1f}]"
        judged = (Share.of(row.right), f"{mended} / {spoiled}", difference)
        lines.append((row.sampler, row.steps, row.evaluations, *judged, f"{row.deviation:.3f}"))
    return table(lines)


def read_rows(path: Path, of: Mapping[str, Any]) -> dict[tuple[str, int], Row]:
    """Rows that an earlier call with the same pictures ``of`` them left, by sampler and steps."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            made, row = entry.pop("of"), Row(**entry)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # the line of a call that was killed, or nobody's
        if made == of:
            found[row.sampler, row.steps] = row
    return found


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Sample and judge every sampler, print the table, write ``samplers.json`` and a sheet of each."""
    samplers = [parse_sampler(text) for text in args.samplers]
    prompts = suite(args.split, args.num, args.seed)
    pipe = load(args)
    base = pipe.stage_defaults.get("base")
    if base is None:
        raise ValueError(f"--model {args.model!r} has no base stage, whose samplers this compares")
    if args.sampler is not None:
        raise ValueError(f"--sampler {args.sampler[0]} has no effect here: name what to compare behind --samplers")
    own, settings = pipe.base_scheduler, sampling_settings(args)
    settings.pop("num_inference_steps", None)
    numbers = args.steps or [12, 20]
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"--steps {numbers}: give numbers here")
    cells = list(product(numbers, samplers))
    rules = [StepRule(resampled(own, sampler), steps) for steps, sampler in cells]  # refuse before anything is sampled
    check_calls(pipe, [(base.size, settings)], args.batch_size)
    known = {name: getattr(args, name) for name in ("model", "split", "num", "seed", "batch_size")}
    of = {**known, "guidance_scale": settings.get("guidance_scale")}
    done = read_rows(args.out / DONE, of)
    for number, ((steps, sampler), rule) in enumerate(zip(cells, rules, strict=True)):
        if (sampler, steps) in done:
            continue
        call = {**settings, "sampler": sampler, "num_inference_steps": steps}
        label = f"{sampler}, {steps} steps"
        judged = judge_all(prompts, sample(pipe, prompts, base.size, call, args.batch_size, label=label)[base.size])
        save_sheet(args.out / f"sheet_{number}.png", [entry.tile for entry in judged])
        right = [entry.verdict.ok for entry in judged]
        row = Row(sampler, steps, len(rule.times), right, deviation(resampled(own, sampler), steps))
        with (args.out / DONE).open("a", encoding="utf-8") as stream:
            stream.write("\n" + json.dumps({"of": of, **vars(row)}) + "\n")  # the first: after a call that was killed
        note(f"{label}: {Share.of(right)}")
        done[sampler, steps] = row
    rows = [done[sampler, steps] for steps, sampler in cells]
    print(f"{args.split}, {base.size} px\n\n{compare(rows)}")
    write_result(args, command, pipe, rows=rows)
