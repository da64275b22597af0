"""Do the pictures show what the prompts say? One picture a prompt, judged by the detector, no picking."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from PIL import Image

from imagen.data.shapes.layout import place
from imagen.data.shapes.render import render
from imagen.diffusion.sampling import SAMPLERS
from imagen.evaluation.generate import load, progress_line, sample
from imagen.evaluation.judge import FACT_NAMES, Verdict, check
from imagen.evaluation.report import Tile, note, provenance, save_sheet, table, write_json
from imagen.evaluation.stats import Share
from imagen.evaluation.suites import CATEGORIES, Prompt, SuiteName, shuffled, suite

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline

TRUTH_FLOOR, OTHERS_CEILING, SHUFFLED_CEILING = 0.99, 0.05, 0.20
_OFFSETS = (1, 2, 3, 5, 7)  # which other prompts a picture is judged against


@dataclass(frozen=True)
class Judged:
    """A prompt and what the detector says of its picture."""

    prompt: Prompt
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Prompt, seed, verdict on each fact, and what was found."""
        seen = self.verdict.detection
        objects = [
            {
                **{name: getattr(found, name) for name in ("color", "shape", "pattern", "size")},
                "center": [round(value, 3) for value in found.center],
                "radius": round(found.radius, 3),
            }
            for found in seen.objects
        ]
        return {
            "prompt": self.prompt.text,
            "category": self.prompt.category,
            "seed": self.prompt.seed,
            "ok": self.verdict.ok,
            "facts": self.verdict.facts,
            "background": seen.background,
            "objects": objects,
        }

    def tile(self, picture: Image.Image) -> Tile:
        """The picture with its prompt, and what is wrong."""
        wrong = [name for name, right in self.verdict.facts.items() if not right]
        text = self.prompt.text + (f" | wrong: {', '.join(wrong)}" if wrong else "")
        return Tile(picture, text, self.verdict.ok)


def judge_all(prompts: Sequence[Prompt], pictures: Sequence[Image.Image]) -> list[Judged]:
    """Every picture against its own prompt."""
    return [Judged(prompt, check(picture, prompt.facts)) for prompt, picture in zip(prompts, pictures, strict=True)]


def shares(judged: Sequence[Judged]) -> dict[str, Share]:
    """Share of pictures with every fact right: each category that occurs, and "overall"."""
    result: dict[str, Share] = {}
    for category in CATEGORIES:
        of_category = [entry.verdict.ok for entry in judged if entry.prompt.category == category]
        if of_category:
            result[category] = Share.of(of_category)
    return {**result, "overall": Share.of(entry.verdict.ok for entry in judged)}


def fact_shares(judged: Sequence[Judged]) -> dict[str, Share]:
    """Share of pictures in which a fact is right, of those whose prompt states it."""
    stated = {name: [e.verdict.facts[name] for e in judged if name in e.verdict.facts] for name in FACT_NAMES}
    return {name: Share.of(outcomes) for name, outcomes in stated.items() if outcomes}


def truth_pictures(prompts: Sequence[Prompt], size: int) -> list[Image.Image]:
    """The renderer's own picture of every prompt."""
    pictures = []
    for prompt in prompts:
        scene = place(prompt.facts, np.random.default_rng([prompt.seed, 1]))
        pictures.append(Image.fromarray((render(scene, size) * 255).round().astype(np.uint8)))
    return pictures


def others_share(prompts: Sequence[Prompt], judged: Sequence[Judged]) -> Share:
    """How often pictures pass for other prompts of the suite (of other facts): what is found by chance."""
    outcomes = []
    for index, entry in enumerate(judged):
        others = {(index + offset) % len(prompts) for offset in _OFFSETS} - {index}
        differing = [prompts[i].facts for i in sorted(others) if prompts[i].facts != entry.prompt.facts]
        outcomes += [check(entry.verdict.detection, facts).ok for facts in differing]
    return Share.of(outcomes)


def detector_controls(prompts: Sequence[Prompt], judged: Sequence[Judged], size: int) -> dict[str, Share]:
    """What the detector says of rendered truth, and of pictures (rendered, sampled) of other prompts."""
    truth = judge_all(prompts, truth_pictures(prompts, size))
    return {
        "rendered truth": Share.of(entry.verdict.ok for entry in truth),
        "rendered truth, other prompts": others_share(prompts, truth),
        "samples, other prompts": others_share(prompts, judged),
    }


def controls_hold(controls: dict[str, Share]) -> dict[str, bool]:
    """Whether each control is within its bound; controls without trials are left out."""
    return {
        name: share.value >= TRUTH_FLOOR
        if name == "rendered truth"
        else share.value <= (SHUFFLED_CEILING if "shuffled" in name else OTHERS_CEILING)
        for name, share in controls.items()
        if share.trials
    }


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that samples."""
    parser.add_argument("--model", required=True, help="pipeline folder or Hub id; a base stage alone will do at 64 px")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first prompt; the others count up (default 0)")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts sampled at once (default 8)")
    parser.add_argument("--steps", type=int, nargs="+", help="one number, or one a stage; default: the stages' own")
    parser.add_argument("--guidance", type=float, nargs="+", help="one scale, or one a stage; default: the stages' own")
    parser.add_argument("--sampler", choices=sorted(SAMPLERS), help="of every stage; default: the stages' own")
    parser.add_argument("--device", help="where to sample, such as cpu or cuda:1; default: a GPU if there is one")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_sampling_arguments(parser)
    parser.add_argument(
        "--split", choices=get_args(SuiteName), default="heldout", help="which prompts (default heldout)"
    )
    parser.add_argument("--size", type=int, default=256, help="side of the judged pictures in pixels (default 256)")
    parser.add_argument("--num", type=int, default=200, help="prompts, spread evenly over the categories (default 200)")
    parser.add_argument(
        "--num-1024",
        type=int,
        help="how many of them are judged at 1024 px too (default 40 if the model makes 1024 px)",
    )
    parser.add_argument("--shuffle-words", action="store_true", help="also sample the relations with shuffled words")
    parser.add_argument("--train-step", type=int, help="training step of the model, for curves over training")
    parser.add_argument("--out", type=Path, default=Path("results/alignment"), help="folder of the JSON and the sheets")


def sampling_settings(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """``--steps``, ``--guidance`` and ``more`` as the pipeline takes them: one value for all stages, or one each."""
    given = {"num_inference_steps": args.steps, "guidance_scale": args.guidance, **more}
    return {name: values[0] if values is not None and len(values) == 1 else values for name, values in given.items()}


def _large(args: argparse.Namespace, available: Sequence[int]) -> int:
    """How many prompts go on to 1024 px."""
    default = 40 if 1024 in available and args.size < 1024 else 0
    large = default if args.num_1024 is None else args.num_1024
    if large < 0 or (large and args.size >= 1024):
        raise ValueError(f"--num-1024 is {large} with --size {args.size}; expected 0 or more and a size below 1024")
    return min(large, args.num)


def result_table(judged: Sequence[Judged]) -> str:
    """Categories and facts with their shares."""
    rows = [("category", "every fact right, 95 % interval")]
    rows += [(name, str(share)) for name, share in shares(judged).items()]
    facts = [("fact", "right where the prompt states it")]
    facts += [(name, str(share)) for name, share in fact_shares(judged).items()]
    return f"{table(rows)}\n\n{table(facts)}"


def control_table(controls: dict[str, Share]) -> str:
    """Controls with their shares and whether they are within bounds."""
    holds = controls_hold(controls)
    words = {True: "holds", False: "FAILS"}
    return table(
        [("control", "share", "verdict")]
        + [(name, str(share), words[holds[name]] if name in holds else "-") for name, share in controls.items()]
    )


def result_json(judged: Sequence[Judged]) -> dict[str, Any]:
    """Shares and every single verdict."""
    return {
        "shares": {name: share.to_json() for name, share in shares(judged).items()},
        "facts": {name: share.to_json() for name, share in fact_shares(judged).items()},
        "pictures": [entry.to_json() for entry in judged],
    }


def recorded(args: argparse.Namespace, pipe: ImagenPipeline) -> dict[str, Any]:
    """The settings of a run: the command's options, and what each stage would do by itself."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    stages = {slot: defaults.to_dict() for slot, defaults in pipe.stage_defaults.items()}
    return {"options": {k: v for k, v in options.items() if not callable(v)}, "stages": stages}


def _sampled(
    args: argparse.Namespace, pipe: ImagenPipeline, prompts: Sequence[Prompt], large: int
) -> dict[int, list[Image.Image]]:
    """Pictures of all prompts at ``args.size``, of the first ``large`` at 1024 px too (the same pictures, enlarged)."""
    settings = sampling_settings(args)
    pictures: dict[int, list[Image.Image]] = {args.size: []}
    if large:
        made = sample(pipe, prompts[:large], 1024, settings, args.batch_size, progress=progress_line("1024 px"))
        pictures = {args.size: made[args.size], 1024: made[1024]}
    if large < len(prompts):
        label = progress_line(f"{args.size} px")
        pictures[args.size] += sample(pipe, prompts[large:], args.size, settings, args.batch_size, progress=label)[
            args.size
        ]
    return pictures


def run(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Sample, judge, print the tables, write ``alignment.json`` and the contact sheets."""
    prompts = suite(args.split, args.num, args.seed)
    pipe = load(args.model, args.device, args.sampler)
    pictures = _sampled(args, pipe, prompts, _large(args, [d.size for d in pipe.stage_defaults.values()]))
    judged = {side: judge_all(prompts[: len(made)], made) for side, made in pictures.items()}
    controls = detector_controls(prompts, judged[args.size], args.size)
    if args.shuffle_words:
        mixed = [shuffled(prompt) for prompt in prompts if prompt.facts.relation is not None]
        label = progress_line("shuffled words")
        made = sample(pipe, mixed, args.size, sampling_settings(args), args.batch_size, progress=label)[args.size]
        controls["relations, shuffled words"] = Share.of(e.verdict.ok for e in judge_all(mixed, made))
    for side, entries in judged.items():
        print(f"{args.split}, {side} px\n\n{result_table(entries)}\n")
        tiles = [entry.tile(picture) for entry, picture in zip(entries, pictures[side], strict=True)]
        save_sheet(args.out / f"sheet_{side}.png", tiles)
    print(control_table(controls))
    content = {
        "kind": "alignment",
        **provenance(command),
        "settings": recorded(args, pipe),
        "train_step": args.train_step,
        "results": {str(side): result_json(entries) for side, entries in judged.items()},
        "controls": {name: share.to_json() for name, share in controls.items()},
    }
    write_json(args.out / "alignment.json", content)
    note(f"wrote {args.out / 'alignment.json'} and the contact sheets beside it")
    return 0
