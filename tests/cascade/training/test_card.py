"""The model card that compose writes: figures of the run's own files, and nobody's own card is touched."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagen.cascade.training.card import MADE, Trained, quoted, write_card
from imagen.cascade.training.config.run import RunConfig
from imagen.cli.compose import main
from imagen.cli.train import next_command
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.stages.spec import StageDefaults
from imagen.training.config.parsing import to_yaml
from tests.factories import save_stage, tiny_base, tiny_pipeline

SR = {"stage.name": "sr256", "stage.size": 16, "stage.lowres_size": 8}


@pytest.fixture
def run(config: Callable[..., RunConfig], tmp_path: Path) -> Path:
    """What a training leaves, without the weights."""
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "samples").mkdir()
    settings = config(**{"grid.prompts": ["a blue fern"], "data.split": "heldout"})
    (folder / "config.yaml").write_text(to_yaml(settings))
    (folder / "model" / "stage.json").write_text(json.dumps({"step": 1200, "images": 38400}))
    lines: list[dict[str, Any]] = [
        {"step": 600, "loss": 0.5},
        {"step": 600, "val_loss": 0.25},
        {"step": 1200, "loss": 0.125},
    ]
    (folder / "metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), '{"step": 1210, "lo']))
    for step in (600, 1200):
        (folder / "samples" / f"step-{step:08d}.png").write_bytes(b"%d" % step)
    return folder


def test_it_says_what_the_run_says(run: Path, tmp_path: Path) -> None:
    pipe, out = tiny_pipeline(sr1024_unet=None), tmp_path / "leaves"
    out.mkdir()
    write_card(pipe, {"base": Trained.of(run / "model"), "sr256": Trained.of(tmp_path / "some_pipeline")}, out)
    card = (out / "README.md").read_text()
    parameters = sum(p.numel() for p in pipe.base_unet.parameters()) / 1e6
    assert (
        f"| `base` | 16 px | BaseUNet | {parameters:.1f} million | 1,200 steps, 38,400 pictures | 0.1250 | 0.2500 |"
        in card
    )
    assert "| `sr256` | 16 -> 32 px | EfficientUNet | " in card
    assert "python sample.py 'a blue fern' --model leaves" in card
    assert "Data: kind shapes, split heldout." in card
    assert (out / "samples" / "base.png").read_bytes() == b"1200"  # the last grid
    assert "(samples/base.png)" in card
    assert "## sr256" not in card  # of a pipeline nothing more is known
    front, settings = card.split("---\n")[1], card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(front) == {"library_name": "imagen", "pipeline_tag": "text-to-image"}
    assert yaml.safe_load(settings)["grid"]["prompts"] == ["a blue fern"]


def test_it_is_written_anew_but_nobody_s_own_is(run: Path, tmp_path: Path) -> None:
    pipe, card = tiny_pipeline(sr256_unet=None, sr1024_unet=None), tmp_path / "README.md"
    write_card(pipe, {"base": Trained.of(run)}, tmp_path)
    (run / "model" / "stage.json").write_text(json.dumps({"step": 7, "images": 70}))
    write_card(pipe, {"base": Trained.of(run)}, tmp_path)
    assert "7 steps, 70 pictures" in card.read_text()
    own = card.read_text().replace(MADE, "")
    card.write_text(own)
    write_card(pipe, {"base": Trained.of(run)}, tmp_path)
    assert card.read_text() == own


@pytest.mark.parametrize(("text", "told"), [
    ("a: [1", "config.yaml is not valid YAML: "), ("- a", "config.yaml is no run's configuration: it has no section d"),
    ("data: x", "config.yaml is no run's configuration"),
])  # fmt: skip
def test_a_run_whose_configuration_is_damaged_is_told_before_anything_is_written(
    run: Path, tmp_path: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "model")
    stage = tiny_base(text_dim=None)
    rule = make_scheduler("ddim", CosineSchedule(), "sample")
    save_stage(run / "model", "base", stage, rule, defaults=StageDefaults(num_inference_steps=1, size=16))
    (run / "config.yaml").write_text(text)
    capsys.readouterr()
    assert main(["--base", str(run), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("compose: error: --base: ")
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_without_grids_or_metrics_has_a_card(run: Path, tmp_path: Path) -> None:
    (run / "metrics.jsonl").unlink()
    for picture in (run / "samples").iterdir():
        picture.unlink()
    write_card(tiny_pipeline(sr256_unet=None, sr1024_unet=None), {"base": Trained.of(run)}, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "38,400 pictures |  |  |" in card
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "python sample.py --model 'a run'"),
        ({"sampling.guidance": "auto"}, "python sample.py --model 'a run' --guidance-method cfg"),
        ({"text.encoder": "x"}, "python sample.py \"what to show\" --model 'a run'"),
        (SR, "python -m imagen.training.compose --base BASE_RUN --sr256 'a run' --out MODEL"),
        (
            {"lora.rank": 2, "train.init_from": "x"},
            "python sample.py \"what to show\" --model MODEL --lora base='a run'",
        ),
    ],
)
def test_a_training_ends_with_the_next_command(
    config: Callable[..., RunConfig], changes: dict[str, Any], command: str
) -> None:
    assert next_command(config(**{"run_dir": "a run", **changes})) == command


@pytest.mark.parametrize("prompt", ['a "blue" fern', "it's $HOME `date`", "-- a\nfern", "plain"])
def test_a_prompt_of_a_card_is_one_word_of_a_shell(prompt: str) -> None:
    line = quoted(prompt)
    assert shlex.split(line) == [" ".join(prompt.split())]
    assert "\n" not in line
