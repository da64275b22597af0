"""The measures of super-resolution against closed forms, their bounds, and which of them a stage has."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen.data.shapes.language import parse
from imagen.evaluation import superres
from imagen.evaluation.__main__ import main
from imagen.evaluation.alignment import truth_pictures
from imagen.evaluation.suites import Prompt, suite
from imagen.evaluation.superres import Measure, check_stage, color_shift, consistency, decibel, gain, model_table, psnr
from tests.evaluation.painting import Perfect


def measure(value: float, at_least: bool = True, **names: str) -> Measure:
    return Measure(names.get("stage", "s"), names.get("name", "n"), value, 3.0, at_least, (value,))


def test_a_value_on_its_bound_passes_and_no_number_never_does() -> None:
    for at_least in (True, False):
        assert [measure(value, at_least).passes for value in (2.9, 3.0, 3.1)] == [not at_least, True, at_least]
        assert not measure(math.nan, at_least).passes
    assert measure(3.14159).cells == ("3.14", "pass")
    assert measure(1.0).cells == ("1.00", "FAIL")
    assert measure(1.0).to_json() == {
        "stage": "s", "name": "n", "value": 1.0, "bound": 3.0, "at_least": True, "values": (1.0,), "passes": False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "db"),
    [(100, 1, 20), (1, 100, -20), (1, 1, 0), (0, 0, 0), (1, 0, 90), (0, 1, -90), (1e9, 0, 99), (0, 1e9, -99)],
)
def test_decibels_are_ten_per_factor_of_ten_within_99(one: float, other: float, db: float) -> None:
    assert decibel(one, other) == pytest.approx(db)


def test_one_bad_picture_is_not_averaged_away() -> None:
    assert psnr([0.0, 2 * 65.025]) == pytest.approx(30)
    assert psnr([65.025]) == pytest.approx(30)


def flat(*rgb: int, side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), rgb)


@pytest.mark.parametrize("shift", [(6, 0, -9), (-9, 6, 0), (0, -9, 6)])
def test_the_shift_is_the_largest_of_the_channels_whatever_its_sign(shift: tuple[int, ...]) -> None:
    before = flat(100, 100, 100)
    after = flat(*(100 + part for part in shift), side=32)
    assert color_shift(before, after) == pytest.approx(9)
    before.paste((200, 50, 100), (2, 2, 4, 4))
    large = before.resize((32, 32), Image.Resampling.NEAREST)
    large.paste(tuple(level + part for level, part in zip((200, 50, 100), shift, strict=True)), (8, 8, 16, 16))
    assert color_shift(before, large) == pytest.approx(9), "of the object alone"
    noisy = np.full((32, 32, 3), 100) + np.where(np.arange(32) % 2, 40, -40)[:, None, None]
    assert color_shift(flat(100, 100, 100), Image.fromarray(noisy.astype(np.uint8))) == pytest.approx(0), "means"
    noisy = np.full((8, 8, 3), 100) + np.where(np.arange(8) % 2, 40, -40)[:, None, None]
    assert color_shift(flat(100, 100, 100), Image.fromarray(noisy.astype(np.uint8))) == pytest.approx(0), "noise"


def test_an_object_is_what_differs_from_the_border_in_any_channel() -> None:
    for channel in range(3):
        before, after = np.full((8, 8, 3), 100), np.full((8, 8, 3), 100)
        before[4:6, 4:6, channel] = after[4:6, 4:6, channel] = 125
        after[4:6, 4:6, 0] += 10
        pictures = [Image.fromarray(pixels.astype(np.uint8)) for pixels in (before, after)]
        assert color_shift(*pictures) == pytest.approx(10)
        before[4:6, 4:6, channel] -= 1  # 24 from the border: none
        assert color_shift(Image.fromarray(before.astype(np.uint8)), pictures[1]) < 2


def test_what_a_stage_made_is_reduced_and_compared_picture_by_picture() -> None:
    before = [flat(100, 100, 100), flat(50, 50, 50)]
    after = [flat(103, 100, 100, side=16), flat(50, 50, 50, side=16)]
    near, shift = consistency("8 -> 16", before, after)
    assert (near.stage, near.at_least, near.bound) == ("8 -> 16", True, 32.0)
    assert near.value == pytest.approx(decibel(255.0**2, (3 + 0) / 2))
    assert near.values == (pytest.approx(decibel(255.0**2, 3)), 99.0)
    assert (shift.stage, shift.at_least, shift.bound) == ("8 -> 16", False, 2.0)
    assert (shift.value, shift.values) == (pytest.approx(1.5), (pytest.approx(3), pytest.approx(0)))


def test_the_gain_is_of_all_pictures_together_over_bicubic() -> None:
    low, truth = [flat(0, 0, 0), flat(0, 0, 0)], [flat(10, 10, 10, side=16), flat(20, 20, 20, side=16)]
    made = [flat(9, 9, 9, side=16), flat(20, 20, 20, side=16)]
    found = gain("8 -> 16", "plain", low, made, truth)
    assert (found.stage, found.name, found.bound, found.at_least) == (
        "8 -> 16",
        "gain over bicubic, plain, dB",
        3.0,
        True,
    )
    assert found.value == pytest.approx(10 * math.log10((100 + 400) / 1))
    assert found.values == (pytest.approx(20), 99.0)


def prompt(text: str) -> Prompt:
    return Prompt(text, parse(text), 3)


def test_patterns_are_put_on_every_thing_and_said() -> None:
    two = superres.with_pattern(prompt("a red star above a small striped blue ring"), "dotted")
    assert (two.text, two.seed) == ("a dotted red star above a small dotted blue ring", 3)
    assert superres.with_pattern(two, None) == prompt("a red star above a small blue ring")
    turns = [prompt(f"a {pattern} red star") for pattern in ("striped", "dotted", "checkered")]
    assert [superres.swapped(one).text.split()[1] for one in turns] == ["dotted", "checkered", "striped"]


def test_prompts_are_held_out_plain_or_patterned_in_turn() -> None:
    plain = superres.plain_prompts(8, 2)
    assert [one.seed for one in plain] == list(range(2, 10))
    assert [one.category for one in plain] == ["single", "relation", "counting", "background"] * 2
    assert not any(thing.pattern for one in plain for thing in one.facts.things)
    patterned = superres.patterned_prompts(7, 2)
    assert [one.facts.things[0].pattern for one in patterned] == (["striped", "dotted", "checkered"] * 3)[:7]
    assert {one.category for one in patterned} == {"single"}
    assert min(one.seed for one in patterned) >= 502
    assert [one.text for one in superres.patterned_prompts(7, 3)] != [one.text for one in patterned]


def test_the_largest_object_shows_the_pattern() -> None:
    prompts = [prompt("a large striped red star"), prompt("a large red star"), prompt("a large dotted red star")]
    truth = truth_pictures(prompts, 256)
    empty = flat(128, 128, 128, side=256)
    both = truth_pictures([prompt("a large striped red star above a small dotted blue ring")], 256)[0]
    asked = [prompts[0], prompts[0], prompts[2], prompts[2], prompts[0], prompts[2]]
    shown = [truth[0], truth[1], truth[2], empty, both, both]
    assert superres.shows_pattern(asked, shown) == [True, False, True, False, True, False]


class Upscaler:
    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int, int]] = []

    def __call__(self, prompts: Sequence[Prompt], images: superres.Pictures, size: int) -> list[Image.Image]:
        self.calls.append(([one.text for one in prompts], images[0].width, size))
        return truth_pictures(prompts, size)


@pytest.mark.parametrize(
    ("low", "size", "more"), [(64, 128, 0), (64, 192, 2), (95, 190, 0), (192, 384, 1), (191, 382, 2)]
)
def test_patterns_are_judged_where_they_are_seen_and_swapped_where_the_input_does_not_tell(
    low: int, size: int, more: int
) -> None:
    plain = [prompt("a large red star")]
    patterned = [prompt("a large striped red star"), prompt("a large dotted blue ring")]
    upscale = Upscaler()
    measures, columns = check_stage(low, size, upscale, plain, patterned)
    names = [
        "reduced output vs input, dB",
        "mean colour shift, /255",
        "gain over bicubic, plain, dB",
        "gain over bicubic, patterned, dB",
        "pattern follows the caption",
        "swapping the word swaps the pattern",
    ]
    assert [one.name for one in measures] == names[: 4 + more]
    assert {one.stage for one in measures} == {f"{low} -> {size}"}
    assert all(one.value == 1.0 and one.values == (1.0, 1.0) for one in measures[4:])
    assert [*columns] == ["input", "bicubic", "model", "truth", "word swapped"][: 4 + (more == 2)]
    sides = {name: [picture.width for picture in pictures] for name, pictures in columns.items()}
    assert sides == {name: [low if name == "input" else size] * 3 for name in columns}
    truth = [picture.tobytes() for picture in truth_pictures([*plain, *patterned], size)]
    for name in ("model", "truth"):
        assert [picture.tobytes() for picture in columns[name]] == truth
    swapped = [(["a large dotted red star", "a large checkered blue ring"], low, size)] if more == 2 else []
    assert upscale.calls == [([one.text for one in some], low, size) for some in (plain, patterned)] + swapped


def test_bicubic_stands_beside_the_model_s_values() -> None:
    model = [measure(4.0, name="a"), measure(2.0, False, name="b"), measure(1.0, name="c", stage="t")]
    control = [measure(1.0, name="b"), measure(3.5, name="a"), measure(9.0, name="c")]
    rows = [line.split() for line in model_table(model, control).splitlines()[2:]]
    assert rows == [
        ["s", "a", ">=", "3", "4.00", "pass", "3.50", "pass"],
        ["s", "b", "<=", "3", "2.00", "pass", "1.00", "fail"],
        ["t", "c", ">=", "3", "1.00", "FAIL", "-"],
    ]


@pytest.mark.parametrize(
    ("sizes", "asked"), [((64, 128), [(64, 128)]), ((64, 128, 1024), [(64, 128), (128, 1024)])], ids=["two", "three"]
)
def test_every_stage_is_checked_on_as_many_prompts_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, sizes: tuple[int, ...], asked: list[tuple[int, int]]
) -> None:
    every = [*superres.plain_prompts(3, 4), *superres.patterned_prompts(3, 4)]
    pipe = Perfect([*every, *map(superres.swapped, every)], sizes)
    monkeypatch.setattr(superres, "load", lambda args: pipe)
    words = ["superres", "--model", "m", "--num", "2", "--num-1024", "1", "--seed", "4", "--out", str(tmp_path)]
    assert main([*words, "--aug-level", "0.5"]) == 0
    found = [(call["image"] and call["image"][0].width, call["size"], len(call["texts"])) for call in pipe.calls]
    expected: list[Any] = []
    for low, size in asked:
        number = 1 if size == 1024 else 2
        expected += [(low, size, number)] * (3 if size >= 192 else 2) + [(None, size, number)]
    assert found == expected
    assert {call["aug_level"] for call in pipe.calls} == {0.5}
    content = json.loads((tmp_path / "superres.json").read_text())
    stages = [f"{low} -> {size}" for low, size in asked]
    assert [*dict.fromkeys(one["stage"] for one in content["model"])] == [
        *stages,
        *(f"text -> {one}" for one in stages),
    ]
    assert {one["stage"] for one in content["bicubic"]} == {*stages}
    assert all(one["passes"] for one in content["model"])
    each = {(one["stage"], one["name"]): one["values"] for one in content["model"]}
    for stage, name in [key for key in each if key[0].startswith("text")]:  # the same pictures, for it draws the truth
        assert each[stage, name] == each[stage.removeprefix("text -> "), name]
    printed = capsys.readouterr().out
    assert "model: pass" in printed
    assert "control: bicubic enlargement fails, as it must" in printed
    for _, size in asked:
        columns = 5 if size >= 192 else 4
        rows = 2 * (1 if size == 1024 else 2)
        assert Image.open(tmp_path / f"sheet_{size}.png").size == (columns * (256 + 14), rows * (256 + 14 + 52))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--num", "0"], "--num is 0 and --num-1024 is 8; expected at least 1"),
        (["--num-1024", "0"], "--num is 24 and --num-1024 is 0; expected at least 1"),
        ([], "model 'm' has no super-resolution stage to check"),
    ],
)
def test_what_cannot_be_checked_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, options: list[str], told: str
) -> None:
    monkeypatch.setattr(superres, "load", lambda args: Perfect(suite("heldout", 1), (64,)))
    assert main(["superres", "--model", "m", *options]) == 2
    assert capsys.readouterr().err == f"imagen.evaluation superres: error: {told}\n"


def test_a_control_that_passes_at_one_stage_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    every = [*superres.plain_prompts(1, 0), *superres.patterned_prompts(1, 0)]
    every = [*every, *map(superres.swapped, every)]
    monkeypatch.setattr(superres, "load", lambda args: Perfect(every, (64, 128, 256)))  # patterns show in the second
    for name, bound in (("MIN_GAIN_DB", -1.0), ("MIN_CONSISTENCY_DB", 1.0), ("MAX_COLOR_SHIFT", 99.0)):
        monkeypatch.setattr(superres, name, bound)
    words = ["superres", "--model", "m", "--num", "1", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "PASSES, so the check shows nothing" in capsys.readouterr().out
