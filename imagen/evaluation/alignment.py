"""Do the pictures show what the prompts say? One picture a prompt, judged by the detector, no picking."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from imagen.data.shapes.layout import place
from imagen.data.shapes.render import render
from imagen.evaluation.generate import add_sampling_arguments, check_calls, load, sample, sampling_settings
from imagen.evaluation.judge import FACT_NAMES, Verdict, check
from imagen.evaluation.report import Tile, save_sheet, table, write_result
from imagen.evaluation.stats import Share
from imagen.evaluation.suites import CATEGORIES, Prompt, shuffled, suite

#: Within what a control must lie to hold.
CONTROLS = {
    "rendered truth": (0.99, 1.0),
    "rendered truth, other prompts": (0.0, 0.05),
    "samples, other prompts": (0.0, 0.05),
    "relations, shuffled words": (0.0, 0.20),
}
_OFFSETS = (1, 2, 3, 5, 7)  # which other prompts a picture is judged against


@dataclass(frozen=True)
class Judged:
    """A prompt, its picture, and what the detector says of that."""

    prompt: Prompt
    picture: Image.Image
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

    @property
    def tile(self) -> Tile:
        """The picture with its prompt, and what is wrong."""
        wrong = [name for name, right in self.verdict.facts.items() if not right]
        text = self.prompt.text + (f" | wrong: {', '.join(wrong)}" if wrong else "")
        return Tile(self.picture, text, self.verdict.ok)


def judge_all(prompts: Sequence[Prompt], pictures: Sequence[Image.Image]) -> list[Judged]:
    """Every picture against its own prompt."""
    return [Judged(p, picture, check(picture, p.facts)) for p, picture in zip(prompts, pictures, strict=True)]


def shares(judged: Sequence[Judged]) -> dict[str, Share]:
    """Share of pictures with every fact right: each category that occurs, and "overall"."""
    names = (*CATEGORIES, "overall")
    right = {name: [e.verdict.ok for e in judged if name in (e.prompt.category, "overall")] for name in names}
    return {name: Share.of(outcomes) for name, outcomes in right.items() if outcomes}


def fact_shares(judged: Sequence[Judged]) -> dict[str, Share]:
    """Share of pictures in which a fact is right, of those whose prompt states it."""
    stated = {name: [e.verdict.facts[name] for e in judged if name in e.verdict.facts] for name in FACT_NAMES}
    return {name: Share.of(outcomes) for name, outcomes in stated.items() if outcomes}


def summary(judged: Sequence[Judged]) -> dict[str, dict[str, Share]]:
    """Both, as they are written."""
    return {"shares": shares(judged), "facts": fact_shares(judged)}


def truth_pictures(prompts: Sequence[Prompt], size: int) -> list[Image.Image]:
    """The renderer's own picture of every prompt."""
    scenes = [place(prompt.facts, np.random.default_rng([prompt.seed, 1])) for prompt in prompts]
    return [Image.fromarray((render(scene, size) * 255).round().astype(np.uint8)) for scene in scenes]


def others_share(prompts: Sequence[Prompt], judged: Sequence[Judged]) -> Share:
    """How often pictures pass for other prompts of the suite (of other facts): what is found by chance."""
    outcomes = []
    for index, entry in enumerate(judged):
        others = [prompts[i].facts for i in {(index + offset) % len(prompts) for offset in _OFFSETS}]
        outcomes += [check(entry.verdict.detection, facts).ok for facts in others if facts != entry.prompt.facts]
    return Share.of(outcomes)


def detector_controls(prompts: Sequence[Prompt], judged: Sequence[Judged], size: int) -> dict[str, Share]:
    """What the detector says of rendered truth, and of pictures (rendered, sampled) of other prompts."""
    truth = judge_all(prompts, truth_pictures(prompts, size))
    return {
        "rendered truth": shares(truth)["overall"],
        "rendered truth, other prompts": others_share(prompts, truth),
        "samples, other prompts": others_share(prompts, judged),
    }


def controls_hold(controls: dict[str, Share]) -> dict[str, bool]:
    """Whether each control is within its bounds; controls without trials are left out."""
    return {name: CONTROLS[name][0] <= s.value <= CONTROLS[name][1] for name, s in controls.items() if s.trials}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_sampling_arguments(parser, num=200, split="heldout")
    add = parser.add_argument
    add("--size", type=int, default=256, help="side of the judged pictures in pixels (default 256)")
    told = "how many of them are judged at 1024 px too (default 40 if the model makes 1024 px)"
    add("--num-1024", type=int, help=told)
    add("--shuffle-words", action="store_true", help="also sample the relations with shuffled words")
    add("--train-step", type=int, help="training step of the model, for curves over training")


def _large(args: argparse.Namespace, available: Sequence[int]) -> int:
    """How many prompts go on to 1024 px."""
    default = 40 if 1024 in available and args.size < 1024 else 0
    large = default if args.num_1024 is None else args.num_1024
    if large < 0 or (large and args.size >= 1024):
        raise ValueError(f"--num-1024 is {large} with --size {args.size}; expected 0 or more and a size below 1024")
    return min(large, args.num)


def result_table(judged: Sequence[Judged]) -> str:
    """Categories and facts with their shares."""
    categories = table([("category", "every fact right, 95 % interval"), *shares(judged).items()])
    return categories + "\n\n" + table([("fact", "right where the prompt states it"), *fact_shares(judged).items()])


def control_table(controls: dict[str, Share]) -> str:
    """Controls with their shares and whether they are within bounds."""
    words = {name: "holds" if holds else "FAILS" for name, holds in controls_hold(controls).items()}
    rows = [(name, share, words.get(name, "-")) for name, share in controls.items()]
    return table([("control", "share", "verdict"), *rows])


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Sample, judge, print the tables, write ``alignment.json`` and the contact sheets."""
    prompts = suite(args.split, args.num, args.seed)
    pipe = load(args)
    settings = sampling_settings(args)
    large = _large(args, [defaults.size for defaults in pipe.stage_defaults.values()])
    check_calls(pipe, [(args.size, settings), *([(1024, settings)] if large else [])], args.batch_size)
    pictures: dict[int, list[Image.Image]] = {side: [] for side in ((args.size, 1024) if large else (args.size,))}
    for some, size in ((prompts[:large], 1024), (prompts[large:], args.size)):
        made = sample(pipe, some, size, settings, args.batch_size, label=f"{size} px")
        for side, already in pictures.items():
            already += made.get(side, [])
    judged = {side: judge_all(prompts[: len(made)], made) for side, made in pictures.items()}
    controls = detector_controls(prompts, judged[args.size], args.size)
    if args.shuffle_words:
        mixed = [shuffled(prompt) for prompt in prompts if prompt.facts.relation is not None]
        made = sample(pipe, mixed, args.size, settings, args.batch_size, label="shuffled words")
        controls["relations, shuffled words"] = Share.of(
            e.verdict.ok for e in judge_all(mixed, made.get(args.size, []))
        )
    for side, entries in judged.items():
        print(f"{args.split}, {side} px\n\n{result_table(entries)}\n")
        save_sheet(args.out / f"sheet_{side}.png", [entry.tile for entry in entries])
    print(control_table(controls))
    results = {str(side): {**summary(entries), "pictures": entries} for side, entries in judged.items()}
    write_result(args, command, pipe, train_step=args.train_step, results=results, controls=controls)
