"""Guidances are compared on the same prompts and seeds, with what they cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data.shapes.language import parse
from imagen.data.shapes.layout import place
from imagen.data.shapes.render import render
from imagen.diffusion.guidance import parse_guidance
from imagen.evaluation import guidances
from imagen.evaluation.__main__ import main
from imagen.evaluation.alignment import Judged, judge_all
from imagen.evaluation.detector import Detection, Found
from imagen.evaluation.guidances import Row, color_errors, compare, counted
from imagen.evaluation.judge import Verdict
from imagen.evaluation.suites import Prompt, suite
from tests.evaluation.painting import Perfect
from tests.factories import tiny_base, tiny_base_alone


def pictures(prompts, shift=0):
    made = []
    for prompt in prompts:
        scene = place(prompt.facts, np.random.default_rng([prompt.seed, 1]))
        pixels = (render(scene, 256) * 255).round().astype(int) - shift
        made.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return made


def test_colour_errors_are_those_of_the_objects_and_the_table_pairs_the_pictures():
    prompts = [prompt for prompt in suite("tune", 40, 0) if len(prompt.facts.things) == 1][:6]
    truth, darker = judge_all(prompts, pictures(prompts)), judge_all(prompts, pictures(prompts, 12))
    assert max(error for entry in truth for error in color_errors(entry)) < 2
    errors = [error for entry in darker for error in color_errors(entry)]
    assert 8 < np.median(errors) <= 12.5
    wrong = [replace(entry, verdict=replace(entry.verdict, facts={"count": False})) for entry in truth[:2]]
    text = compare([Row("cfg", 3.0, truth, 100.0), Row("apg", 3.0, [*wrong, *truth[2:]], 100.0)])
    assert [line.split("  ")[0].strip() for line in text.splitlines()[2:]] == ["cfg", "apg"]
    assert "0 / 2" in text.splitlines()[3]
    assert "2 / 0" in compare([Row("apg", 3.0, [*wrong, *truth[2:]], 1.0), Row("cfg", 3.0, truth, 1.0)]).splitlines()[3]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_base_alone().save_pretrained(tmp_path / "model")
    tiny_base(seed=5).save_pretrained(tmp_path / "weak")
    return tmp_path / "model"


def test_every_guidance_is_sampled_with_what_it_costs(model, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["guidances", "--model", str(model), "--weak", str(tmp_path / "weak"), "--num", "4", "--steps", "3"]
    methods = ["cfg", "interval(low=99)", "auto"]
    assert main([*words, "--methods", *methods, "--guidance", "1", "2", "--device", "cpu", "--out", str(out)]) == 0
    rows = json.loads((out / "guidances.json").read_text())["rows"]
    assert [(row["method"].split("(")[0], row["scale"], row["evaluations"]) for row in rows] == [
        ("cfg", 1, 3), ("cfg", 2, 6), ("interval", 1, 3), ("interval", 2, 3), ("auto", 1, 3), ("auto", 2, 6),
    ]  # fmt: skip
    assert [len(row["pictures"]) for row in rows] == [4] * 6
    assert len(list(out.glob("sheet_*.png"))) == 6
    assert "mended / spoiled" in capsys.readouterr().out


def test_mistakes_are_one_line(model, tmp_path, capsys):
    assert main(["guidances", "--model", str(model), "--methods", "apgg", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'apg'?" in capsys.readouterr().err
    assert main(["guidances", "--model", str(model), "--methods", "auto", "--num", "4", "--out", str(tmp_path)]) == 2
    assert "needs a weaker network" in capsys.readouterr().err


def seen(text: str, *tones: tuple[float, ...], right: bool = True) -> Judged:
    found = tuple(Found("red", "star", "plain", (0.5, 0.5), 0.1, 0.0, tone) for tone in tones)
    verdict = Verdict({"count": right}, Detection("gray", found))
    return Judged(Prompt(text, parse(text), 0), Image.new("RGB", (8, 8)), verdict)


def test_the_error_of_a_colour_is_the_median_over_all_objects_that_count():
    """Red is (220, 40, 40)."""
    one, many = seen("a red star", (220.0, 40.0, 43.0)), seen("two red stars", (190.0, 70.0, 70.0), (220.0, 40.0, 40.0))
    two = seen("a red star above a red ring", (0.0, 0.0, 0.0))
    assert [color_errors(entry) for entry in (one, many, two)] == [[1.0], [30.0, 0.0], []]
    assert Row("cfg", 1.0, [one, many, two], 2.0).color_error == 1.0
    assert Row("cfg", 1.0, [two, many], 2.0).color_error == 15.0
    assert Row("cfg", 1.0, [two, seen("a red star")], 2.0).color_error is None
    row = Row("cfg", 1.5, [one, two], 2.25)
    told = row.to_json()
    assert {name: told[name] for name in ("method", "scale", "evaluations", "color_error")} == {
        "method": "cfg", "scale": 1.5, "evaluations": 2.25, "color_error": 1.0
    }  # fmt: skip
    assert told["pictures"] == [one, two]


def test_a_row_is_paired_with_the_first_picture_by_picture():
    def row(*verdicts: bool) -> Row:
        return Row("cfg", 2.0, [seen("a red star above a red ring", right=right) for right in verdicts], 7.04)

    lines = compare([row(True, True, False, False), row(True, False, True, True), row(False, False, True, False)])
    cells = [line.split("  ") for line in lines.splitlines()[2:]]
    assert [[cell.strip() for cell in line if "/ " in cell and "%" not in cell] for line in cells] == [
        ["0 / 0"], ["2 / 1"], ["1 / 2"]
    ]  # fmt: skip
    assert all(line[-1].strip() == "7.0" and line[0] == "cfg" for line in cells)
    assert all(" -  " in line for line in lines.splitlines()[2:]), "no object whose colour counts"


def test_pictures_are_counted_over_all_networks_until_the_count_ends():
    networks = [torch.nn.Identity(), torch.nn.Identity()]
    with counted(networks) as rows:
        networks[0](torch.zeros(3, 1))
        networks[1](torch.zeros(4, 1))
        with pytest.raises(TypeError):
            networks[0]()  # the text alone
    networks[0](torch.zeros(5, 1))
    assert rows == [3, 4]


def test_by_default_every_usual_guidance_has_the_stage_s_own_scale(tmp_path, monkeypatch):
    pipe = Perfect(suite("tune", 2, 3), (64,))
    pipe.base_unet, pipe.base_weak_unet = torch.nn.Identity(), None
    monkeypatch.setattr(guidances, "load", lambda args: pipe)
    words = ["guidances", "--model", "m", "--num", "2", "--seed", "3", "--steps", "5", "--out", str(tmp_path)]
    assert main(words) == 0
    asked = [(call["guidance"], call["guidance_scale"], call["num_inference_steps"]) for call in pipe.calls]
    usual = ("cfg", "interval(low=-3)", "apg(eta=0)", "rescaled(phi=0.7)")
    assert [(parse_guidance(method), scale, steps) for method, scale, steps in asked] == [
        (parse_guidance(method), 0.64, 5) for method in usual
    ]
    assert [call["size"] for call in pipe.calls] == [64] * 4
    pipe.stage_defaults = {"sr256": pipe.stage_defaults["base"]}
    assert main(words) == 2
