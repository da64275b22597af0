"""Ways to sample are compared on the same prompts and seeds; every picture is made once."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from imagen.evaluation import tradeoff
from imagen.evaluation.__main__ import main
from imagen.evaluation.alignment import judge_all, truth_pictures
from imagen.evaluation.distance import Distance
from imagen.evaluation.generate import fingerprint
from imagen.evaluation.suites import suite
from imagen.evaluation.tradeoff import Row, Way, compare
from tests.factories import tiny_base, tiny_base_alone

WAYS = ["ddpm 3", "dpm++(use_exponential_sigmas, solver_order=1) 2 interval(high=-3)", "fast"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pipe = tiny_base_alone()
    pipe.register_to_config(presets={"fast": {"base": {"num_inference_steps": 1, "guidance_scale": 2.0}}})
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_way_is_a_sampler_steps_and_a_guidance_or_a_preset() -> None:
    assert Way.parse("ddpm 25").settings == {"sampler": "ddpm", "num_inference_steps": 25}
    assert Way.parse(WAYS[1]).settings == {
        "sampler": "dpm++(use_exponential_sigmas,solver_order=1)", "num_inference_steps": 2,
        "guidance": "interval(low=-inf, high=-3)+cfg",
    }  # fmt: skip
    assert Way.parse("ddpm 5 cfg 4.5").settings["guidance_scale"] == 4.5
    assert Way.parse("ddpm 5 2").settings == {"sampler": "ddpm", "num_inference_steps": 5, "guidance_scale": 2.0}
    assert Way.parse("ddpm smart27").settings["num_inference_steps"] == "smart27"
    assert Way.parse(" ddpm  5   cfg ") == Way.parse("ddpm 5 cfg"), "one way, however it is spaced"
    assert Way.parse("fast", ["fast"]) == Way("fast", {"preset": "fast"})
    folders = [Way.parse(text, ["fast"]).folder for text in WAYS]
    assert len(set(folders)) == 3
    assert all("/" not in folder and " " not in folder for folder in folders)
    for text, told in (("fast", "way 'fast': write SAMPLER STEPS"), ("ddpm 5 cfg cfg", "cannot read 'cfg cfg'"),
                       ("ddpm", "write SAMPLER STEPS"),
                       ("plms 5", "sampler is 'plms'"), ("ddpm 5 cgf", "did you mean 'cfg'"),
                       ("ddpm many", "way 'ddpm many': steps is 'many'"),
                       ("ddpm 0", "way 'ddpm 0': steps is 0"), ("ddpm -3", "way 'ddpm -3'")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            Way.parse(text)


def test_ways_are_paired_with_the_first() -> None:
    prompts = suite("tune", 4, 0)
    truth = truth_pictures(prompts, 128)
    good, mixed = judge_all(prompts, truth), judge_all(prompts, [*truth[:2], truth[3], truth[2]])
    rows = [Row("a", 100.0, good, {}), Row("b", 31.6, mixed, {"layout": Distance(0.0125, 0.002)})]
    lines = compare(rows).splitlines()[2:]
    assert lines[0].split()[:2] == ["a", "100"]
    assert "0 / 0" in lines[0]
    assert "0 / 2" in lines[1]
    assert "-50.0 [" in lines[1]
    assert lines[1].split()[1] == "32"
    assert lines[1].split()[-3:] == ["+12.50", "(2.00)", "-"]
    assert Row("b", 32.0, mixed, {}).to_json()["right"] == [True, True, False, False]


def test_every_way_is_sampled_as_it_says_and_a_second_call_makes_what_is_missing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked, draw = tmp_path / "out", [], tradeoff.sample

    def sample(pipe: Any, prompts: Any, size: int, settings: Any, batch_size: int) -> Any:
        asked.append((settings.get("sampler", "preset"), len(prompts)))
        return draw(pipe, prompts, size, settings, batch_size)

    monkeypatch.setattr(tradeoff, "sample", sample)
    words = ["tradeoff", "--model", str(model), "--num", "5", "--batch-size", "3", "--device", "cpu", "--out", str(out)]
    words += ["--reference", "ddpm 4", "--ways", *WAYS]
    assert main(words) == 0
    spaced = "dpm++(use_exponential_sigmas,solver_order=1)"
    assert asked == [(name, count) for name in ("ddpm", spaced, "preset", "ddpm") for count in (3, 2)]
    rows = json.loads((out / "tradeoff.json").read_text())["rows"]
    assert [row["way"] for row in rows] == [*WAYS, "ddpm 4"]
    assert [row["evaluations"] for row in rows] == [6.0, 3.0, 2.0, 8.0], "two a guided step, one outside the interval"
    assert all(len(row["right"]) == 5 for row in rows)
    assert [sorted(row["distances"]) for row in rows] == [["detail", "layout"]] * 3 + [[]]
    assert len(list(out.glob("*.png"))) == 4
    table = capsys.readouterr().out
    asked.clear()
    (out / "ddpm_3" / f"{suite('tune', 5, 0)[2].seed:07d}.png").unlink()
    assert main(words) == 0
    assert asked == [("ddpm", 1)]
    assert capsys.readouterr().out == table, "the picture that was lost is the same again"


def test_pictures_of_other_weights_or_settings_are_no_part_of_a_way(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tradeoff", "--num", "3", "--device", "cpu", "--out", str(tmp_path / "out"), "--ways", "ddpm 2"]
    words += ["--reference", "none", "--model", str(model)]
    assert main(words) == 0
    assert main([*words, "--guidance", "2.5"]) == 2
    assert "ddpm_2' holds pictures of other weights or settings: give another --out" in capsys.readouterr().err
    other = tiny_base_alone()
    other.register_modules(base_unet=tiny_base(seed=7))
    other.save_pretrained(model)
    assert main(words) == 2
    assert "holds pictures of other weights" in capsys.readouterr().err


def test_a_fingerprint_knows_every_weight() -> None:
    network = tiny_base()
    before = fingerprint(network)
    assert before == fingerprint(tiny_base())
    with torch.no_grad():
        list(network.parameters())[-1].view(-1)[-1] += 1e-3
    assert fingerprint(network) != before


@pytest.mark.parametrize(("words", "told"), [
    (["--steps", "3"], "--steps and --sampler have no effect here"),
    (["--sampler", "ddim"], "--steps and --sampler have no effect here"),
    (["--ways", "quick"], "way 'quick': write SAMPLER STEPS"), (["--reference", "all"], "way 'all': write"),
    (["--ways", "ddpm 2", "ddpm  2"], "--ways has 'ddpm 2' twice"),
    (["--ways", "ddpm 2", "--num", "2"], "--num 2: distances need 3 prompts; give more, or --reference none"),
    (["--ways", "ddpm 1001"], "1001"), (["--ways", "ddim(gamma=1) 3"], "has no option 'gamma'"),
])  # fmt: skip
def test_what_cannot_be_compared_is_told_before_anything_is_sampled(
    words: list[str], told: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["tradeoff", "--model", str(model), "--device", "cpu", "--num", "3", "--out", str(out), *words]) == 2
    assert told in capsys.readouterr().err
    assert not list(out.glob("*/*.png"))


def test_files_that_cannot_be_gone_on_from_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tradeoff", "--num", "3", "--device", "cpu", "--out", str(tmp_path / "out"), "--ways", "ddpm 2"]
    words += ["--reference", "none", "--model", str(model)]
    assert main(words) == 0
    folder = tmp_path / "out" / "ddpm_2"
    told, picture = folder / "way.json", sorted(folder.glob("*.png"))[1]
    good, pixels = told.read_text(), picture.read_bytes()
    for text in ("{", "3", json.dumps({**json.loads(good), "evaluations": None})):
        told.write_text(text)
        assert main(words) == 2
        assert str(told) in capsys.readouterr().err
    told.unlink()
    assert main(words) == 2
    assert f"{str(folder)!r} holds pictures, but not what made them (way.json): clear it" in capsys.readouterr().err
    told.write_text(good)
    small = io.BytesIO()
    Image.new("RGB", (10, 10)).save(small, "PNG")
    for content, what in (
        (pixels[: len(pixels) // 2], "cannot be read ("),
        (small.getvalue(), "is 10 x 10 px, not 64"),
    ):
        picture.write_bytes(content)
        assert main(words) == 2
        assert f"{str(picture)!r} {what}" in capsys.readouterr().err
    picture.unlink()
    assert main(words) == 0
    assert picture.read_bytes() == pixels
