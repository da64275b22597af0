"""sample.py where files are odd or broken and memory ends: read rightly, or one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagen.cli import sample
from imagen.cli.png import read_settings
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.stages.spec import StageDefaults
from tests.factories import save_stage, tiny_base, tiny_pipeline


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_of_prompts_may_begin_with_a_mark_and_hold_any_letters(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa red circle\r\ntwo\u2028blue star\n", encoding="utf-8")
    assert run("--prompts", str(tmp_path / "prompts.txt"), "--size", "16") == 0
    assert [read_settings(run.out / name)["prompt"] for name in names(run.out)] == [
        "a red circle",
        "two\u2028blue star",
    ]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer/tokenizer.json", "{"),
        ("base_unet/config.json", "[]"),
        ("base_scheduler/scheduler_config.json", '{"_class_name": "DDPMScheduler", "trained_betas": [0.1, 0.2]}'),
        ("base_scheduler/scheduler_config.json", '{"_class_name": "DDPMScheduler", "prediction_type": "foo"}'),
    ],
)
def test_a_broken_part_is_one_line_that_names_the_model_or_the_stage(run, tmp_path, capsys, file, content):
    folder = tmp_path / "model"
    tiny_pipeline().save_pretrained(folder)
    (folder / file).write_text(content)
    assert run("a red circle", model=str(folder)) == 2
    error = capsys.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("sample.py: error: ")
    assert str(folder) in error or "stage base: " in error


def test_what_no_memory_holds_is_told(run, capsys):
    assert run("a red circle", "--size", "16", "--height", "3200000", "--width", "3200000") == 1
    assert "do not fit into the memory of cpu" in capsys.readouterr().err


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be loaded."""
    monkeypatch.setattr(sample, "load", lambda *_: pytest.fail("the model was loaded"))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lora", "nowhere"], "--lora 'nowhere' holds no adapter; give a pytorch_lora_weights.safetensors"),
        (["--lora", "large=nowhere"], "--lora STAGE is 'large'; expected one of base, sr256, sr1024"),
        (["--steps", "1001"], "--steps of base is 1001; expected an integer from 1 to 1000"),
        (["--steps", "2,2,1001"], "--steps of sr1024 is 1001; expected an integer from 1 to 1000"),
        (["--height", "100", "--width", "100"], "--height=100 is not a multiple of 8, which these stages need"),
        (["--height", "64", "--width", "99"], "--width=99 is not a multiple of 8, which these stages need"),
        (["--guidance-method", "auto"], "stage base: --guidance-method 'auto' needs a weaker network, and this model"),
        (["--steps", "base=2,base=3"], "argument --steps: 'base=2,base=3' gives base two values; give one"),
        (["--steps", "16=2,base=3"], "--steps names stage base twice, by side and slot; give it one value"),
        (["--out", ""], "--out is empty (''); give a folder to write to"),
        (["--model", ""], "model '' is empty; give a folder with model_index.json, or a Hub id (owner/name)"),
        (["--model", " "], "model ' ' is empty; give a folder"),
    ],
)
def test_what_can_be_said_before_the_weights_are_loaded_is(run, model, capsys, words, told):
    assert run("a red circle", "--model", model, *words, model=None) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sample.py: error: {told}"), error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("missing", ["base", "sr"])
def test_a_run_without_weights_is_told(run, tmp_path, capsys, missing):
    rule = make_scheduler("ddpm", CosineSchedule(), "epsilon")
    save_stage(tmp_path / "base" / "model", "base", tiny_base(), rule, defaults=StageDefaults(size=16))
    above = StageDefaults(size=32, lowres_size=16)
    save_stage(tmp_path / "sr" / "model", "sr256", tiny_base(lowres_channels=3), rule, defaults=above)
    for file in (tmp_path / missing / "model" / "unet").glob("*.safetensors"):
        file.unlink()
    assert run("a red circle", model=f"{tmp_path / 'base'},{tmp_path / 'sr'}") == 2
    error = capsys.readouterr().err
    assert str(tmp_path / missing) in error
    assert "holds no *.safetensors weights: let the run train on" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("no_weights")
def test_a_run_that_samples_beside_a_weaker_network_is_told_how_without(run, tmp_path, capsys):
    rule, stored = make_scheduler("ddpm", CosineSchedule(), "epsilon"), StageDefaults(size=16, guidance="auto")
    save_stage(tmp_path / "run" / "model", "base", tiny_base(), rule, defaults=stored)
    assert run("a red circle", model=str(tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert error.startswith("sample.py: error: stage base: --guidance-method 'auto' needs a weaker network, and this")
    assert "give --guidance-method cfg" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["--guidance-method", "auto", "--guidance", "1"], ["--steps", "base=1,32=1,64=1"]])
def test_what_needs_nothing_more_passes(run, monkeypatch, words):
    reached = []
    monkeypatch.setattr(sample, "load", lambda *_: reached.append(1) or (_ for _ in ()).throw(ValueError("loaded")))
    assert run("a red circle", *words) == 2
    assert reached
