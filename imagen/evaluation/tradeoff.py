"""Network evaluations against quality: ways to sample the base stage, on the same prompts and seeds.

A way is a sampler, its steps, a guidance and its scale, ``"dpm++(use_exponential_sigmas) 12 interval(low=-3) 4"``, of
which the last two may be left out, or a preset of the model by its name. Beside what it costs stand the share of
pictures with every fact right, what it mended and spoiled against the first way with the 95 % interval of that
difference, and how far its pictures are from those of ``--reference``, as sets: in what stands where and in which
colours, and in fine detail. Every picture is kept in a folder of its way as soon as it is made; the same command goes
on behind them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from imagen.diffusion.guidance import check_guidance
from imagen.diffusion.samplers import parse_sampler
from imagen.disk import read_json, whole, write_text
from imagen.errors import one_line
from imagen.evaluation.alignment import Judged, judge_all, summary
from imagen.evaluation.distance import Distance, detail, energy_distance, layout
from imagen.evaluation.generate import (
    add_sampling_arguments,
    check_calls,
    fingerprint,
    load,
    sample,
    sampling_settings,
)
from imagen.evaluation.guidances import counted
from imagen.evaluation.report import note, save_sheet, table, write_result
from imagen.evaluation.stats import Share, paired_difference
from imagen.evaluation.suites import Prompt, suite
from imagen.stages.spec import check_steps

REFERENCE = "ddpm 256"
FEWEST = 3  # prompts that tell two sets apart (imagen.evaluation.distance)
FEW = "interval(low=-5,high=-2)"  # where guidance decides what the demo's pictures show
USUAL = (
    *("ddpm 50", "ddpm 25", "ddpm 50 cfg 4"),
    *(f"dpm++(use_exponential_sigmas) {steps}" for steps in (25, 16, 12, 8)),
    *("unipc(use_exponential_sigmas) 16", "dpm++(use_exponential_sigmas) 24 interval(high=-1)"),
    *("dpm++(use_exponential_sigmas) 26 interval(high=-3)", f"dpm++ 23 {FEW}"),
    *(f"dpm++ {steps} {FEW} 4" for steps in (32, 23, 16)),
    *(f"dpm++(algorithm_type=sde-dpmsolver++) {steps} {FEW} 4" for steps in (32, 23)),
)


class Way(NamedTuple):
    """A way to sample the base stage: how it was written, and arguments of the pipeline's call."""

    text: str
    settings: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str, presets: Collection[str] = ()) -> Way:
        """``SAMPLER STEPS [GUIDANCE] [SCALE]``, or one of ``presets``.

        Raises:
            ValueError: it is not written so, or names what there is not.
        """
        if text in presets:
            return cls(text, {"preset": text})
        words = re.split(r"\s+(?![^(]*\))", text.strip())
        if len(words) not in (2, 3, 4):
            raise ValueError(f"way {text!r}: write SAMPLER STEPS [GUIDANCE] [SCALE], as 'dpm++ 20' or 'ddpm 25 apg 5'")
        rest, settings = words[2:], dict[str, Any]()
        try:
            steps = int(words[1]) if words[1].isdecimal() else words[1]
            settings |= {"sampler": parse_sampler(words[0]), "num_inference_steps": check_steps("steps", steps)}
            if rest and re.fullmatch(r"\d+(\.\d+)?", rest[-1]):
                settings["guidance_scale"] = float(rest.pop())
            if rest:
                settings["guidance"] = check_guidance(" ".join(rest))
        except ValueError as error:
            raise ValueError(f"way {text!r}: {error}") from error
        return cls(" ".join(words), settings)

    @property
    def folder(self) -> str:
        """A name for what it makes."""
        return re.sub(r"[^\w.+=-]+", "_", self.text).strip("_")


@dataclass(frozen=True)
class Row:
    """One way, judged.

    Attributes:
        evaluations: of the networks, for each picture.
        distances: from the reference, by kind of feature; empty for the reference itself.
    """

    way: str
    evaluations: float
    judged: Sequence[Judged]
    distances: Mapping[str, Distance]

    @property
    def right(self) -> list[bool]:
        """Whether every fact is right, picture by picture."""
        return [entry.verdict.ok for entry in self.judged]

    def to_json(self) -> dict[str, Any]:
        """The row; of each picture no more than whether it is right."""
        own = {name: getattr(self, name) for name in ("way", "evaluations", "distances", "right")}
        return {**own, **summary(self.judged)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_sampling_arguments(parser, num=128, split="tune")
    parser.add_argument("--ways", nargs="+", default=list(USUAL), metavar="WAY", help=f"default: {', '.join(USUAL)}")
    told = "the way whose pictures the others' are compared with; 'none' compares none (default %(default)s)"
    parser.add_argument("--reference", default=REFERENCE, metavar="WAY", help=told)


def compare(rows: Sequence[Row]) -> str:
    """The table: each row against the first."""
    head = ("way", "evaluations", "every fact right, 95 % interval", "mended / spoiled", "difference, points")
    lines: list[tuple[object, ...]] = [(*head, "layout x 1000", "detail x 1000")]
    for row in rows:
        low, high, mended, spoiled = paired_difference(rows[0].right, row.right)
        difference = f"{100 * (mended - spoiled) / len(row.right):+5.1f} [{100 * low:+5.1f}, {100 * high:+5.1f}]"
        judged = (Share.of(row.right), f"{mended} / {spoiled}", difference)
        apart = [row.distances.get(name, "-") for name in ("layout", "detail")]
        lines.append((row.way, f"{row.evaluations:.0f}", *judged, *apart))
    return table(lines)


def pictures_of(
    pipe: Any,
    way: Way,
    prompts: Sequence[Prompt],
    settings: Mapping[str, Any],
    folder: Path,
    batch_size: int,
    weights: str,
) -> tuple[list[Image.Image], float]:
    """The pictures of a way, one for each prompt, and the evaluations for each: those in the folder, and the rest.

    Args:
        weights: the network's fingerprint.

    Raises:
        ValueError: the folder holds pictures of other weights or settings, or files that cannot be read.
    """
    base = pipe.stage_defaults["base"]
    call = {**settings, **way.settings}
    of = {"weights": weights, "stage": pipe.settings(size=base.size, **call)["base"].to_dict()}
    told = folder / "way.json"
    cost = cost_so_far(told, of)
    files = {prompt: folder / f"{prompt.seed:07d}.png" for prompt in prompts}
    missing = [prompt for prompt, file in files.items() if not file.is_file()]
    if cost is None and len(missing) < len(prompts):
        raise ValueError(f"{str(folder)!r} holds pictures, but not what made them (way.json): clear it")
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        with counted([pipe.base_unet, *([pipe.base_weak_unet] if pipe.base_weak_unet else [])]) as seen:
            made = sample(pipe, batch, base.size, call, batch_size)[base.size]
        cost = sum(seen) / len(batch)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(told, json.dumps({**of, "evaluations": cost}) + "\n")
        for prompt, picture in zip(batch, made, strict=True):
            with whole(files[prompt]) as partial:
                picture.save(partial, format="PNG")
        note(f"{way.text}: {len(prompts) - len(missing) + start + len(batch)} of {len(prompts)} pictures")
    assert cost is not None, "where nothing is missing it was stored"
    return [opened(file, base.size) for file in files.values()], cost


def cost_so_far(told: Path, of: Mapping[str, Any]) -> float | None:
    """The evaluations for each picture that lies beside a way.json; None where there is none.

    Raises:
        ValueError: it is damaged, or tells of other weights or settings than ``of``.
    """
    if not told.is_file():
        return None
    stored = read_json(told)
    if not isinstance(stored, dict) or not isinstance(cost := stored.get("evaluations"), float | int):
        raise ValueError(f"{str(told)!r} is damaged: clear its folder")
    if {**stored, "evaluations": None} != {**of, "evaluations": None}:
        raise ValueError(f"{str(told.parent)!r} holds pictures of other weights or settings: give another --out")
    return cost


def opened(file: Path, size: int) -> Image.Image:
    """A picture that was kept. Raises: ValueError, where it is none of that size."""
    try:
        picture = Image.open(file).convert("RGB")
    except OSError as error:
        raise ValueError(
            f"{str(file)!r} cannot be read ({one_line(error)}): delete it, and it is made again"
        ) from error
    if picture.size != (size, size):
        raise ValueError(f"{str(file)!r} is {picture.width} x {picture.height} px, not {size}: delete it")
    return picture


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Sample and judge every way, print the table, write ``tradeoff.json`` and a sheet of each."""
    if args.steps is not None or args.sampler is not None:
        raise ValueError("--steps and --sampler have no effect here: they are a part of each of the --ways")
    prompts = suite(args.split, args.num, args.seed)
    pipe = load(args)
    base = pipe.stage_defaults.get("base")
    if base is None:
        raise ValueError(f"--model {args.model!r} has no base stage, whose ways this compares")
    settings = sampling_settings(args)
    ways = [Way.parse(text, pipe.presets) for text in args.ways]
    reference = None if args.reference == "none" else Way.parse(args.reference, pipe.presets)
    if reference is not None and len(prompts) < FEWEST:
        raise ValueError(f"--num {args.num}: distances need {FEWEST} prompts; give more, or --reference none")
    if twice := [way.text for number, way in enumerate(ways) if way in ways[:number]]:
        raise ValueError(f"--ways has {twice[0]!r} twice")
    every = [*ways, *([reference] if reference is not None and reference not in ways else [])]
    check_calls(pipe, [(base.size, {**settings, **way.settings}) for way in every], args.batch_size)
    weights, made = fingerprint(pipe.base_unet), {}
    for way in every:
        made[way.text] = pictures_of(pipe, way, prompts, settings, args.out / way.folder, args.batch_size, weights)
    rows = []
    for way in every:
        pictures, cost = made[way.text]
        distances = {}
        if reference is not None and way != reference:
            pairs = {kind.__name__: (kind(pictures), kind(made[reference.text][0])) for kind in (layout, detail)}
            distances = {name: energy_distance(*pair) for name, pair in pairs.items()}
        rows.append(Row(way.text, cost, judge_all(prompts, pictures), distances))
        save_sheet(args.out / f"{way.folder}.png", [entry.tile for entry in rows[-1].judged])
    print(f"{args.split}, {base.size} px\n\n{compare(rows)}")
    write_result(args, command, pipe, rows=rows)
