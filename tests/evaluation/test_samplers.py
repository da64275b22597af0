"""Samplers are compared on the same prompts and seeds, each row kept as soon as it is done."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, HeunDiscreteScheduler

from imagen.diffusion.samplers import Sampler, resampled
from imagen.diffusion.sampling import ImagenDDPMScheduler, make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.evaluation import samplers
from imagen.evaluation.__main__ import main
from imagen.evaluation.samplers import Row, compare, deviation, read_rows
from imagen.evaluation.stats import Share, paired_difference
from tests.factories import tiny_base_alone

MULTI = DPMSolverMultistepScheduler
OWN = make_scheduler("ddpm", CosineSchedule(), "sample", gamma=0.5)


@pytest.mark.parametrize(("text", "cls", "options"), [
    ("ddim", DDIMScheduler, {}), ("ddpm", ImagenDDPMScheduler, {}), ("singlestep", DPMSolverSinglestepScheduler, {}),
    ("heun(use_karras_sigmas)", HeunDiscreteScheduler, {"use_karras_sigmas": True}),
    ("dpm++(solver_order=3, solver_type=heun)", MULTI, {"solver_order": 3, "solver_type": "heun"}),
    ("dpm++()", MULTI, {}),
])  # fmt: skip
def test_a_sampler_is_a_name_and_options(text: str, cls: Any, options: dict[str, Any]) -> None:
    found = Sampler.parse(text)
    assert found.options == options
    assert Sampler.parse(str(found)) == found
    made = resampled(OWN, text)
    assert type(made) is cls
    assert {name: made.config[name] for name in options} == options
    assert list(made.config.trained_betas) == list(OWN.config.trained_betas)


@pytest.mark.parametrize(("text", "told"), [
    ("heun(", "sampler 'heun.': write NAME or NAME.option=value"), ("euller", "expected one of ddpm, .*, singlestep"),
    ("heun(solver_order=2)", "HeunDiscreteScheduler has no option 'solver_order'"),
    ("ddim(prediction_type=epsilon)", "prediction_type is the stage's own, which a sampler keeps; leave it out"),
    ("ddpm(num_train_timesteps=10)", "num_train_timesteps is the stage's own"),
    ("ddim(clip_sample)", "clip_sample is the stage's own"), ("ddim(rescale_betas_zero_snr)", "is the stage's own"),
    ("dpm++(use_karras_sigmas=maybe)", "use_karras_sigmas is 'maybe'; expected a value such as false"),
    ("dpm++(use_karras_sigmas=1)", "use_karras_sigmas is 1; expected"),
    ("heun(use_karras_sigmas=null)", "use_karras_sigmas is None; expected a value such as false"),
    ("dpm++(solver_order)", "solver_order is True"),
    ("dpm++(solver_order=1.5)", "solver_order is 1.5; expected a value such as 2"),
    ("dpm++(lambda_min_clipped=nan)", "lambda_min_clipped is 'nan'"), ("dpm++(solver_type=2)", "solver_type is 2"),
    ("dpm++(self)", "DPMSolverMultistepScheduler has no option 'self'"), ("dpm++(solver_order={)", "is no value"),
])  # fmt: skip
def test_what_is_no_sampler_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        resampled(OWN, text)


@pytest.mark.parametrize("text", ["dpm++(algorithm_type=foo)", "dpm++(solver_type=foo)", "unipc(solver_type=foo)"])
def test_a_value_that_its_scheduler_has_not_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^sampler '.*foo.*': [^\n]*$"):
        resampled(OWN, text)


@pytest.mark.parametrize("text", [
    "dpm++(lambda_min_clipped=-5)", "dpm++(euler_at_final=false)", "ddim(timestep_spacing=leading)",
    "dpm++(variance_type=null)",
])  # fmt: skip
def test_values_of_an_options_own_kind_are_taken(text: str) -> None:
    assert isinstance(resampled(OWN, text).config.num_train_timesteps, int)


def test_the_distance_from_the_exact_picture_falls_with_the_steps() -> None:
    for text, factor in (("ddim", 3), ("heun", 5), ("dpm++", 4), ("unipc", 4)):
        coarse, fine = (deviation(resampled(OWN, text), steps) for steps in (10, 40))
        assert coarse > factor * fine, text
    ends = [deviation(resampled(OWN, text), 100) for text in ("ddpm", "dpm++(algorithm_type=sde-dpmsolver++)")]
    assert max(ends) < 0.03


def test_a_row_is_paired_with_the_first_of_as_many_steps() -> None:
    rows = [
        Row("euler", 4, 4, [True, True, False, False], 0.5), Row("heun", 4, 7, [True, False, True, True], 0.25),
        Row("euler", 8, 8, [False, False, False, True], 0.125), Row("heun", 8, 15, [False, True, False, False], 0.0625),
    ]  # fmt: skip
    lines = [line.split() for line in compare(rows).splitlines()[2:]]
    assert [line[:3] for line in lines] == [["euler", "4", "4"], ["heun", "4", "7"], ["euler", "8", "8"],
                                            ["heun", "8", "15"]]  # fmt: skip
    told = [" ".join(line) for line in lines]
    assert "2 / 1 +25.0 [" in told[1]
    assert "1 / 1 +0.0 [" in told[3]
    assert [line[-1] for line in lines] == ["0.500", "0.250", "0.125", "0.062"]


def test_the_interval_of_a_difference_is_newcombe_s() -> None:
    """His example (1998, table 3, method 10): 36 right in both, 12 and 2 in one, 0 in none: 0.0569 to 0.3404."""
    before = [True] * 36 + [False] * 12 + [True] * 2
    after = [True] * 36 + [True] * 12 + [False] * 2
    low, high, mended, spoiled = paired_difference(before, after)
    assert (mended, spoiled) == (12, 2)
    assert (low, high) == (pytest.approx(0.0569, abs=2e-3), pytest.approx(0.3404, abs=2e-3))
    turned = paired_difference(after, before)
    assert turned == (pytest.approx(-high), pytest.approx(-low), 2, 12)
    same = paired_difference(before, before)
    assert same[0] <= 0 <= same[1]
    assert all(map(math.isfinite, paired_difference([True] * 3, [False] * 3)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_base_alone().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_sampler_is_sampled_once_and_rows_that_are_done_are_kept(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked, spaced = tmp_path / "out", [], []
    draw = samplers.sample

    def sample(pipe: Any, prompts: Any, size: int, settings: Any, *more: Any, **named: Any) -> Any:
        asked.append((settings["sampler"], settings["num_inference_steps"], len(prompts)))
        spaced.append("use_karras_sigmas" in settings["sampler"])
        return draw(pipe, prompts, size, settings, *more, **named)

    monkeypatch.setattr(samplers, "sample", sample)
    words = ["samplers", "--model", str(model), "--num", "4", "--device", "cpu", "--out", str(out), "--steps", "2", "3"]
    assert main([*words, "--samplers", "euler", "heun"]) == 0
    assert asked == [(name, steps, 4) for steps in (2, 3) for name in ("euler", "heun")]
    rows = json.loads((out / "samplers.json").read_text())["rows"]
    assert [(row["sampler"], row["steps"], row["evaluations"]) for row in rows] == [
        ("euler", 2, 2), ("heun", 2, 3), ("euler", 3, 3), ("heun", 3, 5),
    ]  # fmt: skip
    assert rows[0]["share"]["trials"] == 4
    assert len(list(out.glob("sheet_*.png"))) == 4
    with (out / "rows.jsonl").open("a") as stream:
        stream.write('{"of": ')  # a call that was killed
    table = capsys.readouterr().out
    asked.clear()
    assert main([*words, "--samplers", "euler", "heun"]) == 0
    assert asked == []
    assert capsys.readouterr().out == table
    spaced.clear()
    words[-2:] = ["2"]
    assert main([*words, "--samplers", "euler(use_karras_sigmas)", "heun", "--seed", "1"]) == 0
    assert len(asked) == 2, "pictures of other prompts are others"
    assert spaced == [True, False], "each row has its own options"
    asked.clear()
    assert main([*words, "--samplers", "euler(use_karras_sigmas)", "heun", "--seed", "1"]) == 0
    assert asked == [], "rows behind a line that was cut off are read"


def test_rows_of_other_pictures_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = Row("euler", 4, 4, [True], 0.5)
    path.write_text("".join(json.dumps({"of": {"seed": seed}, **vars(row)}) + "\n" for seed in (0, 1)))
    assert read_rows(path, {"seed": 1}) == {("euler", 4): row}
    assert read_rows(path, {"seed": 2}) == read_rows(tmp_path / "nowhere", {}) == {}
    assert row.to_json()["share"] == Share(1, 1)


@pytest.mark.parametrize(("more", "told"), [
    (["--samplers", "heun(use_beta_sigmas)"], "use_beta_sigmas"),
    (["--steps", "smart27"], "give numbers here"), (["--steps", "2000"], "num_inference_steps=2000 is out of range"),
    (["--batch-size", "0"], "--batch-size is 0"), (["--sampler", "heun"], "--sampler heun has no effect here"),
])  # fmt: skip
def test_mistakes_are_a_line_before_anything_is_sampled(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    more: list[str], told: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(samplers, "sample", lambda *_, **__: pytest.fail("sampled"))
    words = ["samplers", "--model", str(model), "--num", "4", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*words, *more]) == 2
    error = capsys.readouterr().err
    assert told in error.splitlines()[-1]
