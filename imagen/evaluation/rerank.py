"""Best of several, chosen by a CLIP: how much of what choosing could gain does it gain?

``--best-of`` pictures of each prompt are made by the base stage. Their alignment is judged exactly, and three are
compared for each prompt: the first, which is a random one; the one that the CLIP scores highest; and the best there is,
one that the judge passes if any does. With ``--size 256`` these go on to the next stage and are judged once more.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagen.evaluation.alignment import Judged, judge_all, shares
from imagen.evaluation.generate import add_sampling_arguments, check_calls, load, sample, sampling_settings
from imagen.evaluation.launch import Launch
from imagen.evaluation.pictures import open_pictures
from imagen.evaluation.report import note, save_sheet, table, write_result
from imagen.evaluation.sampling import Samples, make_samples
from imagen.evaluation.stats import Share, paired_difference
from imagen.evaluation.suites import Prompt, suite
from imagen.evaluation.zeroshot import load_clip
from imagen.scores.sets import Array, Rows

WAYS = ("random", "clip", "best")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_sampling_arguments(parser, num=400, split="heldout")
    add = parser.add_argument
    add("--clip", required=True, metavar="DIR_OR_HUB_ID", help="the CLIP that chooses")
    add("--best-of", type=int, default=8, metavar="N", help="pictures of each prompt (default 8)")
    add("--size", type=int, help="side to go on to with the chosen ones, such as 256; default: the base stage's")
    add("--preset", help="one of the model's presets in place of the stages' own settings")


def picks(scores: Array, right: NDArray[np.bool_]) -> dict[str, Rows]:
    """(P,) numbers of the picked candidates by way, of CLIP scores (P, N) and verdicts (P, N).

    Of several that are right, or of none, the best is the one that the CLIP likes most.
    """
    return {
        "random": np.zeros(len(scores), dtype=np.intp),
        "clip": scores.argmax(axis=1),
        "best": np.where(right, scores + 1000, scores).argmax(axis=1),
    }


def closed(right: Mapping[str, Sequence[bool]]) -> float:
    """The share of the gap between a random one and the best that the CLIP closes; NaN without a gap."""
    random, clip, best = (sum(right[way]) for way in WAYS)
    return (clip - random) / (best - random) if best > random else math.nan


def expected(right: NDArray[np.bool_]) -> float:
    """The share of candidates (P, N) that are right: that of a random one, more exactly than of the first ones."""
    return float(right.mean())


def compare(judged: Mapping[str, Sequence[Judged]]) -> str:
    """The table of one size."""
    right = {way: [one.verdict.ok for one in each] for way, each in judged.items()}
    rows: list[tuple[object, ...]] = [("picked", "every fact right, 95 % interval", "against random, points")]
    for way in WAYS:
        low, high, mended, spoiled = paired_difference(right["random"], right[way])
        points = 100 * (mended - spoiled) / len(right[way])
        rows.append((way, Share.of(right[way]), f"{points:+5.1f} [{100 * low:+5.1f}, {100 * high:+5.1f}]"))
    kinds = [[way, *(f"{100 * one.value:.0f} %" for one in shares(judged[way]).values())] for way in WAYS]
    by_kind = table([["picked", *shares(judged["clip"])], *kinds])
    gap = closed(right)
    told = "none of them gains anything" if math.isnan(gap) else f"share of the gap that is closed: {gap:.2f}"
    return f"{table(rows)}\n\n{by_kind}\n\n{told}"


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Sample, choose, judge, print the tables, write ``rerank.json`` and a sheet of the chosen ones."""
    from imagen.scores.encoders import similarity

    if args.best_of < 2:
        raise ValueError(f"--best-of is {args.best_of}; expected two at least")
    launch = Launch.of_environment()
    encoder = load_clip(args)
    prompts = suite(args.split, args.num, args.seed)
    pipe = load(args)
    settings = {**sampling_settings(args), **({} if args.preset is None else {"preset": args.preset})}
    base = pipe.stage_defaults["base"].size
    size = base if args.size is None else args.size
    check_calls(pipe, [(base, settings), (size, settings)], args.batch_size)
    texts = [prompt.text for prompt in prompts]
    folder = args.out / "samples"
    make_samples(pipe, Samples(texts, args.best_of, args.seed, base, settings), folder, args.batch_size, launch)
    if not launch.first:
        return
    pictures = [one.picture for one in open_pictures(str(folder))]
    each = [prompt for prompt in prompts for _ in range(args.best_of)]
    judged = judge_all(each, pictures)
    vectors = encoder.texts(texts).repeat_interleave(args.best_of, dim=0)
    scores = similarity(encoder.images(pictures, args.batch_size), vectors).numpy().reshape(len(prompts), -1)
    right = np.array([one.verdict.ok for one in judged]).reshape(scores.shape)
    picked = picks(scores, right)
    results = {base: {way: _those(judged, picked[way], args.best_of) for way in WAYS}}
    if size != base:
        results[size] = _enlarged(pipe, args, prompts, picked, size, settings)
    for side, found in results.items():
        print(f"{args.split}, {side} px, best of {args.best_of}\n\n{compare(found)}\n")
        save_sheet(args.out / f"sheet_{side}.png", [one.tile for one in found["clip"]])
    told = {
        str(side): {way: {"shares": shares(one), "right": [j.verdict.ok for j in one]} for way, one in found.items()}
        | {"closed": closed({way: [j.verdict.ok for j in one] for way, one in found.items()})}
        for side, found in results.items()
    }
    note(f"over all {right.size} candidates {100 * expected(right):.1f} % are right")
    write_result(args, command, pipe, clip=encoder.name, random_expected=expected(right), results=told)


def _those(judged: Sequence[Judged], picked: Rows, each: int) -> list[Judged]:
    return [judged[prompt * each + int(one)] for prompt, one in enumerate(picked)]


def _enlarged(
    pipe: Any,
    args: argparse.Namespace,
    prompts: Sequence[Prompt],
    picked: Mapping[str, Rows],
    size: int,
    call: Mapping[str, Any],
) -> dict[str, list[Judged]]:
    """The picked ones made once more from their seeds, with the later stages, and judged; none is made twice."""
    wanted = {(p, int(one)) for way in WAYS for p, one in enumerate(picked[way])}
    order = sorted(wanted)
    again = [Prompt(prompts[p].text, prompts[p].facts, args.seed + p * args.best_of + one) for p, one in order]
    made: list[Image.Image] = sample(pipe, again, size, call, args.batch_size, label=f"{size} px")[size]
    judged = dict(zip(order, judge_all(again, made), strict=True))
    return {way: [judged[p, int(one)] for p, one in enumerate(picked[way])] for way in WAYS}
