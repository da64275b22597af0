"""Shares, controls and what is judged at 1024 px, counted by hand; what each command asks of the pipeline."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from imagen.data.shapes.language import parse
from imagen.evaluation import alignment, sweep
from imagen.evaluation.__main__ import main
from imagen.evaluation.alignment import (
    FACT_NAMES,
    Judged,
    _large,
    control_table,
    controls_hold,
    fact_shares,
    others_share,
    shares,
    truth_pictures,
)
from imagen.evaluation.detector import Detection, Found
from imagen.evaluation.generate import add_sampling_arguments, sampling_settings
from imagen.evaluation.judge import Verdict, check
from imagen.evaluation.stats import Share
from imagen.evaluation.suites import CATEGORIES, Prompt, suite
from tests.evaluation.painting import Perfect

NOTHING = Detection("gray", ())


def prompt(text: str, seed: int = 0) -> Prompt:
    return Prompt(text, parse(text), seed)


def judged(text: str, **facts: bool) -> Judged:
    return Judged(prompt(text), Image.new("RGB", (64, 64)), Verdict(facts, NOTHING))


ONE, TWO, MANY = "a red star", "a red star above a blue ring", "two red stars"
ENTRIES = [
    judged(ONE, count=True, color=True, shape=False),
    judged(ONE, count=True, color=False, shape=True),
    judged(ONE, count=True, color=True, shape=True, background=True),
    judged(TWO, count=True, color=True, relation=True),
    judged(TWO, count=True, color=False, relation=False),
    judged(MANY, count=False, size=False),
]


def test_shares_are_of_the_pictures_of_each_category_that_occurs() -> None:
    found = shares(ENTRIES)
    assert found == {"single": Share(1, 3), "relation": Share(1, 2), "counting": Share(0, 1), "overall": Share(2, 6)}
    assert [*found] == [name for name in (*CATEGORIES, "overall") if name in found]
    assert shares(ENTRIES[3:4]) == {"relation": Share(1, 1), "overall": Share(1, 1)}
    assert shares([]) == {}


def test_shares_of_a_fact_are_of_the_pictures_whose_prompts_state_it() -> None:
    found = fact_shares(ENTRIES)
    assert found == {
        "count": Share(5, 6), "color": Share(3, 5), "shape": Share(2, 3), "size": Share(0, 1), "relation": Share(1, 2),
        "background": Share(1, 1),
    }  # fmt: skip
    assert [*found] == [name for name in FACT_NAMES if name in found]


def test_a_judged_picture_says_all_that_was_seen() -> None:
    found = Found("red", "star", "striped", (0.12345, 0.98765), 0.17654, 0.05, (1.0, 2.0, 3.0))
    entry = Judged(
        prompt(ONE, 7),
        Image.new("RGB", (64, 64)),
        Verdict({"count": True, "color": False}, Detection("navy", (found,))),
    )
    assert entry.to_json() == {
        "prompt": ONE, "category": "single", "seed": 7, "ok": False, "facts": {"count": True, "color": False},
        "background": "navy",
        "objects": [{
            "color": "red", "shape": "star", "pattern": "striped", "size": "large",
            "center": [0.123, 0.988], "radius": 0.177,
        }],
    }  # fmt: skip
    assert (entry.tile.text, entry.tile.ok) == (f"{ONE} | wrong: color", False)
    wrong = replace(entry, verdict=Verdict({"count": False, "color": True, "shape": False}, NOTHING))
    assert wrong.tile.text == f"{ONE} | wrong: count, shape"
    right = replace(entry, verdict=Verdict({"count": True}, NOTHING))
    assert (right.tile.text, right.tile.ok, right.tile.picture) == (ONE, True, entry.picture)


def test_the_truth_of_a_prompt_is_its_own_and_the_same_every_time() -> None:
    first, again, other = truth_pictures([prompt(ONE, 1), prompt(ONE, 1), prompt(ONE, 2)], 64)
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert [picture.size for picture in truth_pictures([prompt(ONE)] * 2, 32)] == [(32, 32)] * 2


def test_pictures_are_judged_against_prompts_of_other_facts_alone() -> None:
    """A small red star passes for "a red star", and for nothing else here."""
    star = check(truth_pictures([prompt("a small red star")], 64)[0], parse("a small red star"))
    assert star.ok
    texts = ["a small red star", "a red star", "a red star", "a large red star", "a red ring"]
    prompts = [prompt(text) for text in texts]
    entries = [Judged(one, Image.new("RGB", (64, 64)), star) for one in prompts]
    # each against the next three of the circle but those that say the same: 2 of 3, 0 of 2, 1 of 3, 2 of 3, 3 of 3
    assert others_share(prompts, entries) == Share(8, 14)
    assert others_share(prompts[:1], entries[:1]) == Share(0, 0), "no other is there"


@pytest.mark.parametrize("count", [8, 9, 40])
def test_each_picture_is_judged_against_five_others(count: int) -> None:
    prompts = [
        prompt(f"a red {shape}", n) for n, shape in zip(range(count), ["star", "ring", "cross"] * 20, strict=False)
    ]
    distinct = [replace(one, facts=replace(one.facts, count=n + 1)) for n, one in enumerate(prompts)]
    entries = [Judged(one, Image.new("RGB", (64, 64)), Verdict({}, NOTHING)) for one in distinct]
    assert others_share(distinct, entries).trials == 5 * count


@pytest.mark.parametrize(
    ("name", "holds", "fails"),
    [
        ("rendered truth", (99, 100), (98, 97)),
        ("rendered truth, other prompts", (5, 0), (6, 100)),
        ("samples, other prompts", (5, 0), (6, 100)),
        ("relations, shuffled words", (20, 0), (21, 100)),
    ],
)
def test_controls_hold_within_their_bounds(name: str, holds: tuple[int, int], fails: tuple[int, int]) -> None:
    for numbers, verdict in ((holds, True), (fails, False)):
        for number in numbers:
            assert controls_hold({name: Share(number, 100)}) == {name: verdict}
            assert control_table({name: Share(number, 100)}).endswith("holds" if verdict else "FAILS")
    assert controls_hold({name: Share(0, 0)}) == {}
    assert control_table({name: Share(0, 0)}).splitlines()[-1].split()[-2:] == ["-", "-"]


@pytest.mark.parametrize(
    ("asked", "size", "number", "available", "large"),
    [
        (None, 256, 200, (64, 256, 1024), 40),
        (None, 256, 30, (64, 256, 1024), 30),
        (None, 1023, 200, (64, 1024), 40),
        (None, 1024, 200, (64, 256, 1024), 0),
        (None, 256, 200, (64, 256), 0),
        (0, 256, 200, (64, 256, 1024), 0),
        (7, 256, 200, (64, 256, 1024), 7),
        (7, 64, 5, (64, 256, 1024), 5),
        (200, 256, 200, (64, 256, 1024), 200),
        (0, 1024, 200, (64, 256, 1024), 0),
        (-1, 256, 200, (1024,), None),
        (1, 1024, 200, (1024,), None),
        (1, 2048, 200, (1024,), None),
    ],
)
def test_how_many_go_on_to_1024_px(
    asked: int | None, size: int, number: int, available: tuple[int, ...], large: int | None
) -> None:
    args = Namespace(num_1024=asked, size=size, num=number)
    if large is None:
        with pytest.raises(
            ValueError, match=f"--num-1024 is {asked} with --size {size}; expected 0 or more and a size"
        ):
            _large(args, available)
    else:
        assert _large(args, available) == large


def test_some_are_judged_at_both_sizes_and_every_one_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = suite("train", 5, 3)
    pipe = Perfect(prompts, (64, 256, 1024))
    monkeypatch.setattr(alignment, "load", lambda args: pipe)
    words = [
        "alignment",
        "--model",
        "m",
        "--split",
        "train",
        "--num",
        "5",
        "--seed",
        "3",
        "--size",
        "64",
        "--num-1024",
        "2",
    ]
    assert main([*words, "--batch-size", "4", "--steps", "9", "--train-step", "70", "--out", str(tmp_path)]) == 0
    assert [(call["texts"], call["size"]) for call in pipe.calls] == [
        ([one.text for one in prompts[:2]], 1024), ([one.text for one in prompts[2:]], 64),
    ]  # fmt: skip
    assert {call["num_inference_steps"] for call in pipe.calls} == {9}
    content = json.loads((tmp_path / "alignment.json").read_text())
    assert content["train_step"] == 70
    seeds = {side: [one["seed"] for one in made["pictures"]] for side, made in content["results"].items()}
    assert seeds == {"64": [3, 4, 5, 6, 7], "1024": [3, 4]}
    assert [made["shares"]["overall"]["successes"] for made in content["results"].values()] == [5, 2]
    assert set(content["controls"]) == {"rendered truth", "rendered truth, other prompts", "samples, other prompts"}
    of_all = {name: control["trials"] for name, control in content["controls"].items() if "other" in name}
    assert len({*of_all.values()}) == 1, "of all pictures, not of the larger ones alone"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["sheet_1024.png", "sheet_64.png"]
    printed = capsys.readouterr().out
    assert "train, 64 px" in printed
    assert "train, 1024 px" in printed


def test_shuffled_words_are_sampled_of_the_relations_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = suite("heldout", 6)
    relations = [one for one in prompts if one.facts.relation]
    shuffled = [alignment.shuffled(one) for one in relations]
    pipe = Perfect([*prompts, *shuffled])
    monkeypatch.setattr(alignment, "load", lambda args: pipe)
    words = ["alignment", "--model", "m", "--num", "6", "--size", "64", "--shuffle-words", "--guidance", "2"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert [call["texts"] for call in pipe.calls] == [[one.text for one in some] for some in (prompts, shuffled)]
    assert {call["guidance_scale"] for call in pipe.calls} == {2.0}
    control = json.loads((tmp_path / "alignment.json").read_text())["controls"]["relations, shuffled words"]
    assert (control["successes"], control["trials"]) == (len(relations), len(relations)), "what was shuffled is judged"


@pytest.mark.parametrize(
    ("options", "stage", "steps", "scales"),
    [
        ([], 128, [12], [1.28]),
        (["--stage", "64", "--steps", "3", "5", "--guidance", "2", "1"], 64, [3, 5], [2.0, 1.0]),
        (["--size", "64", "--guidance", "7"], 64, [6], [7.0]),
    ],
)
def test_a_sweep_changes_one_stage_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    stage: int,
    steps: list[int],
    scales: list[float],
) -> None:
    pipe = Perfect(suite("tune", 1, 4), (64, 128))
    monkeypatch.setattr(sweep, "load", lambda args: pipe)
    words = ["sweep", "--model", "m", "--num", "1", "--seed", "4", "--out", str(tmp_path), "--size"]
    assert main([*words, "128", *options]) == 0
    grid = [(number, scale) for number in steps for scale in scales]
    asked = [(call["num_inference_steps"], call["guidance_scale"]) for call in pipe.calls]
    assert asked == [({stage: number}, {stage: scale}) for number, scale in grid]
    printed = capsys.readouterr().out
    assert f"settings of the {stage} px stage" in printed
    assert [line.split()[:2] for line in printed.splitlines()[4:]] == [[str(n), f"{scale:g}"] for n, scale in grid]
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["stage"] == stage
    assert [(cell["steps"], cell["guidance"]) for cell in content["cells"]] == grid
    assert all(cell["shares"]["overall"]["successes"] == 1 for cell in content["cells"])
    assert main([*words, "64", "--stage", "128"]) == 2


def test_settings_are_one_for_all_stages_or_one_each_and_only_those_given() -> None:
    parser = ArgumentParser()
    add_sampling_arguments(parser, 12, "tune", ("aug_level", "lowres_consistency"))
    plain = parser.parse_args(["--model", "m"])
    assert sampling_settings(plain) == {}
    assert (plain.num, plain.split, plain.seed, plain.batch_size, plain.sampler, plain.device) == (
        12,
        "tune",
        0,
        8,
        None,
        None,
    )
    words = ["--steps", "3", "smart27", "5", "--guidance", "0", "--aug-level", "0", "0.5", "--lowres-consistency", "2"]
    assert sampling_settings(parser.parse_args(["--model", "m", *words])) == {
        "num_inference_steps": [3, "smart27", 5], "guidance_scale": 0.0, "aug_level": [0.0, 0.5],
        "lowres_consistency": 2,
    }  # fmt: skip
    for wrong in (
        ["--split", "test"],
        ["--sampler", "none"],
        ["--num", "many"],
        ["--seed", "x"],
        ["--batch-size", "1.5"],
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(["--model", "m", *wrong])
    with pytest.raises(SystemExit):
        parser.parse_args([])
    alone = ArgumentParser()
    add_sampling_arguments(alone, 3)
    for option in ("--split", "--aug-level"):
        with pytest.raises(SystemExit):
            alone.parse_args(["--model", "m", option, "tune"])


@pytest.mark.parametrize(
    ("relation", "holds"),
    [("above", (0, 1)), ("below", (0, -1)), ("to the left of", (1, 0)), ("to the right of", (-1, 0))],
)
def test_a_relation_holds_by_more_than_the_other_axis(relation: str, holds: tuple[int, int]) -> None:
    """The second thing lies at `holds` from the first, y down; an eighth more or less across it."""
    facts = parse(f"a red star {relation} a blue ring")
    for away in ((dx, dy) for dx in (-0.25, -0.125, 0, 0.125, 0.25) for dy in (-0.25, -0.125, 0, 0.125, 0.25)):
        first = Found("red", "star", "plain", (0.5, 0.5), 0.1, 0.0, (0.0,) * 3)
        second = Found("blue", "ring", "plain", (0.5 + away[0], 0.5 + away[1]), 0.1, 0.0, (0.0,) * 3)
        along = away[0] * holds[0] + away[1] * holds[1]
        across = abs(away[0] * holds[1]) + abs(away[1] * holds[0])
        for objects in ((first, second), (second, first)):
            verdict = check(Detection("gray", objects), facts).facts
            assert verdict == {"count": True, "color": True, "shape": True, "pattern": True, "relation": along > across}
