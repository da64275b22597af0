"""Guidances are compared on the same prompts and seeds, with what they cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen.data.shapes.layout import place
from imagen.data.shapes.render import render
from imagen.evaluation.__main__ import main
from imagen.evaluation.alignment import judge_all
from imagen.evaluation.guidances import Row, color_errors, compare
from imagen.evaluation.suites import suite
from tests.factories import tiny_base, tiny_pipeline, tiny_stages


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
    stages = {**tiny_stages(), "base": {"size": 64, "guidance_scale": 3.0}}
    pipe = tiny_pipeline(stages=stages, max_length=99)
    pipe.register_modules(sr256_unet=None, sr256_scheduler=None, sr1024_unet=None, sr1024_scheduler=None)
    pipe.save_pretrained(tmp_path / "model")
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
