"""Do the super-resolution stages keep to their input, sharpen it rightly, and draw what the caption says?

Every measure is taken of ``--num`` plain prompts or as many patterned ones, with the model and, as a control, with
bicubic enlargement in its place, which must fail.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from imagen.data.shapes.language import PATTERNS, caption
from imagen.evaluation.alignment import truth_pictures
from imagen.evaluation.detector import detect
from imagen.evaluation.generate import add_sampling_arguments, check_calls, load, sample, sampling_settings
from imagen.evaluation.report import Tile, save_sheet, table, write_result
from imagen.evaluation.suites import Prompt, suite

MIN_CONSISTENCY_DB, MAX_COLOR_SHIFT, MIN_GAIN_DB, MIN_PATTERN_SHARE = 32.0, 2.0, 3.0, 0.8
VISIBLE_FROM = 192  # px: where the detector tells patterns apart; below 120 the renderer draws none

Pictures = Sequence[Image.Image]
Upscaler = Callable[[Sequence[Prompt], Pictures, int], list[Image.Image]]


@dataclass(frozen=True)
class Measure:
    """One line of the check: what was measured of which stage, the bound, and the value of every picture."""

    stage: str
    name: str
    value: float
    bound: float
    at_least: bool
    values: tuple[float, ...]

    @property
    def passes(self) -> bool:
        """The value is on the right side of the bound; NaN is on neither."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def cells(self) -> tuple[str, str]:
        """Value and verdict, for a table."""
        return f"{self.value:.2f}", "pass" if self.passes else "FAIL"

    def to_json(self) -> dict[str, Any]:
        """Everything, and the verdict."""
        return {**dataclasses.asdict(self), "passes": self.passes}


def _pixels(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(picture.convert("RGB"), dtype=np.float64)


def squared_error(a: Image.Image, b: Image.Image) -> float:
    """Mean squared difference of two pictures of one size, in 8-bit levels."""
    return float(((_pixels(a) - _pixels(b)) ** 2).mean())


def decibel(ratio_of: float, to: float) -> float:
    """10 log10 of a ratio of errors, within 99 dB where one of them vanishes."""
    return float(np.clip(10 * np.log10(max(ratio_of, 1e-9) / max(to, 1e-9)), -99.0, 99.0))


def psnr(errors: Sequence[float]) -> float:
    """Peak signal-to-noise ratio in dB of the mean of squared errors: one bad picture is not averaged away."""
    return decibel(255.0**2, float(np.mean(errors)))


def reduced(picture: Image.Image, side: int) -> Image.Image:
    """The mean over blocks of pixels."""
    return picture.convert("RGB").reduce(picture.width // side)


def bicubic(prompts: Sequence[Prompt], images: Pictures, size: int) -> list[Image.Image]:
    """Enlarge by bicubic interpolation: the "model" that must fail."""
    return [image.resize((size, size), Image.Resampling.BICUBIC) for image in images]


def color_shift(before: Image.Image, after: Image.Image) -> float:
    """Largest of the three channels' mean differences, in 1/255; of the picture or of what differs from its border.

    Both are taken because a small object's own shift would drown in a picture that is mostly background.
    """
    difference = _pixels(reduced(after, before.width)) - _pixels(before)
    inside = np.abs(_pixels(before) - np.median(_pixels(before)[0], axis=0)).max(axis=-1) > 24
    shifts = [np.abs(difference.mean(axis=(0, 1))).max()]
    if inside.any():
        shifts.append(np.abs(difference[inside].mean(axis=0)).max())
    return float(max(shifts))


def consistency(stage: str, before: Pictures, after: Pictures) -> list[Measure]:
    """What a stage made, reduced again, against what it was made from."""
    pairs = list(zip(before, after, strict=True))
    errors = [squared_error(reduced(large, small.width), small) for small, large in pairs]
    each = tuple(psnr([error]) for error in errors)
    shifts = tuple(color_shift(small, large) for small, large in pairs)
    return [
        Measure(stage, "reduced output vs input, dB", psnr(errors), MIN_CONSISTENCY_DB, True, each),
        Measure(stage, "mean colour shift, /255", float(np.mean(shifts)), MAX_COLOR_SHIFT, False, shifts),
    ]


def gain(stage: str, name: str, low: Pictures, made: Pictures, truth: Pictures) -> Measure:
    """How many dB nearer the rendered truth than bicubic enlargement, by the mean squared error over all pictures."""
    errors, others = (
        [squared_error(picture, right) for picture, right in zip(pictures, truth, strict=True)]
        for pictures in (made, bicubic([], low, truth[0].width))
    )
    value = decibel(float(np.mean(others)), float(np.mean(errors)))
    each = tuple(map(decibel, others, errors))
    return Measure(stage, f"gain over bicubic, {name}, dB", value, MIN_GAIN_DB, True, each)


def with_pattern(prompt: Prompt, pattern: str | None) -> Prompt:
    """The prompt with another pattern (None: plain) on every thing, said in the plain grammar."""
    things = tuple(dataclasses.replace(thing, pattern=pattern) for thing in prompt.facts.things)
    facts = dataclasses.replace(prompt.facts, things=things)
    return Prompt(caption(facts), facts, prompt.seed)


def plain_prompts(num: int, seed: int) -> list[Prompt]:
    """Held-out prompts of all categories, without patterns."""
    return [with_pattern(prompt, None) for prompt in suite("heldout", num, seed)]


def patterned_prompts(num: int, seed: int) -> list[Prompt]:
    """Held-out single objects with the three patterns in turn; black is left out, its dark twin looks the same."""
    many = suite("heldout", 4 * num + 20, seed + 500, categories=("single",))
    fit = [prompt for prompt in many if prompt.facts.things[0].color != "black"][:num]
    return [with_pattern(prompt, PATTERNS[index % len(PATTERNS)]) for index, prompt in enumerate(fit)]


def swapped(prompt: Prompt) -> Prompt:
    """The prompt with the next pattern."""
    present = prompt.facts.things[0].pattern
    return with_pattern(prompt, PATTERNS[(PATTERNS.index(present or PATTERNS[0]) + 1) % len(PATTERNS)])


def shows_pattern(prompts: Sequence[Prompt], pictures: Pictures) -> list[bool]:
    """Whether the largest object of each picture has the caption's pattern."""
    outcomes = []
    for prompt, picture in zip(prompts, pictures, strict=True):
        objects = detect(picture).objects
        outcomes.append(bool(objects) and objects[0].pattern == prompt.facts.things[0].pattern)
    return outcomes


def pattern_share(stage: str, name: str, outcomes: Sequence[bool]) -> Measure:
    """How many pictures show the pattern that they should."""
    return Measure(stage, name, float(np.mean(outcomes)), MIN_PATTERN_SHARE, True, tuple(map(float, outcomes)))


def check_stage(
    low: int, size: int, upscale: Upscaler, plain: Sequence[Prompt], patterned: Sequence[Prompt]
) -> tuple[list[Measure], dict[str, Pictures]]:
    """Every measure of the stage ``low`` -> ``size`` that starts from rendered pictures; and the pictures, by name.

    Under each name are those of the plain prompts, then those of the patterned ones.
    """
    stage = f"{low} -> {size}"
    inputs, truth = truth_pictures(plain, low), truth_pictures(plain, size)
    made = upscale(plain, inputs, size)
    fills, fill_truth = truth_pictures(patterned, low), truth_pictures(patterned, size)
    filled = upscale(patterned, fills, size)
    measures = [
        *consistency(stage, inputs, made),
        gain(stage, "plain", inputs, made, truth),
        gain(stage, "patterned", fills, filled, fill_truth),
    ]
    columns: dict[str, Pictures] = {"input": inputs + fills, "bicubic": bicubic([], inputs + fills, size)}
    columns |= {"model": made + filled, "truth": truth + fill_truth}
    if size >= VISIBLE_FROM:
        follows = shows_pattern(patterned, filled)
        measures.append(pattern_share(stage, "pattern follows the caption", follows))
        if low < VISIBLE_FROM:  # the input does not say which pattern it is
            others = [swapped(prompt) for prompt in patterned]
            turned = upscale(others, fills, size)
            both = [a and b for a, b in zip(follows, shows_pattern(others, turned), strict=True)]
            measures.append(pattern_share(stage, "swapping the word swaps the pattern", both))
            columns["word swapped"] = made + turned
    return measures, columns


def model_table(model: Sequence[Measure], control: Sequence[Measure]) -> str:
    """All measures with bounds and verdicts, bicubic's beside the model's."""
    others = {(m.stage, m.name): m.cells for m in control}
    rows = [("stage", "measure", "bound", "model", "", "bicubic", "")]
    for m in model:
        value, word = others.get((m.stage, m.name), ("-", ""))
        rows.append((m.stage, m.name, f"{'>=' if m.at_least else '<='} {m.bound:g}", *m.cells, value, word.lower()))
    return table(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_sampling_arguments(parser, num=24, more=("aug_level", "lowres_consistency"))
    parser.add_argument("--num-1024", type=int, default=8, help="the same for stages that make 1024 px (default 8)")


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Measure, print the table, write ``superres.json`` and a contact sheet a stage."""
    if args.num < 1 or args.num_1024 < 1:
        raise ValueError(f"--num is {args.num} and --num-1024 is {args.num_1024}; expected at least 1")
    pipe = load(args)
    defaults = list(pipe.stage_defaults.values())
    stages = [(d.lowres_size, d.size) for d in defaults if d.lowres_size is not None]
    if not stages:
        raise ValueError(f"model {args.model!r} has no super-resolution stage to check")
    settings = sampling_settings(args)
    whole = len(stages) < len(defaults)
    check_calls(pipe, [(size, settings) for _, size in stages] if whole else (), args.batch_size)
    for low, size in stages:
        pipe.settings(Image.new("RGB", (low, low)), size, **settings)
    own: list[Measure] = []  # of pictures that are the model's own, from text alone
    model: list[Measure] = []
    control: list[Measure] = []
    for low, size in stages:

        def upscale(
            prompts: Sequence[Prompt], images: Pictures, size: int, label: str = f"{low} -> {size} px"
        ) -> list[Image.Image]:
            return sample(pipe, prompts, size, settings, args.batch_size, images, label)[size]

        number = args.num_1024 if size >= 1024 else args.num
        plain, patterned = plain_prompts(number, args.seed), patterned_prompts(number, args.seed)
        measures, columns = check_stage(low, size, upscale, plain, patterned)
        model += measures
        control += check_stage(low, size, bicubic, plain, patterned)[0]
        rows = zip([*plain, *patterned], *columns.values(), strict=True)
        tiles = [
            Tile(p, f"{name}: {prompt.text}") for prompt, *row in rows for name, p in zip(columns, row, strict=True)
        ]
        save_sheet(args.out / f"sheet_{size}.png", tiles, columns=len(columns), side=256)
        if whole:
            made = sample(pipe, plain, size, settings, args.batch_size, label=f"from text to {size} px")
            own += consistency(f"text -> {low} -> {size}", made[low], made[size])
    model += own
    fails = all(any(not m.passes for m in control if m.stage == f"{low} -> {size}") for low, size in stages)
    print(model_table(model, control))
    print(f"\nmodel: {'pass' if all(m.passes for m in model) else 'FAIL'}")
    print(f"control: bicubic enlargement {'fails, as it must' if fails else 'PASSES, so the check shows nothing'}")
    write_result(args, command, pipe, model=model, bicubic=control)
