"""One checkpoint of two stages, what it is converted to, and runs that start from it, for all tests here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.task import StageTask
from imagen.convert.deepfloyd_if import convert
from imagen.training.trainer import Trainer
from tests.convert import released
from tests.convert.finetuning import BASE, CAPTIONS, LORA, held_out_loss


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with I and II, as diffusers saves them; stage I with safety checker and watermark."""
    folder = tmp_path_factory.mktemp("released")
    released.save(released.stage_1(**{**released.safety_parts(), "requires_safety_checker": True}), folder / "I")
    released.save(released.stage_2(), folder / "II")
    return folder


@pytest.fixture(scope="session")
def converted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ImagenPipeline folder of both stages."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert([str(checkpoint / "I"), str(checkpoint / "II")], folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures of 32 px of one colour each, and captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(16):
        Image.new("RGB", (32, 32), (200 + i, 40, 10 + i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"  {CAPTIONS[i % 4].title()}\n")
    return folder


@pytest.fixture
def config(converted: Path, pictures: Path, tmp_path: Path) -> Any:
    """config(BASE, LORA, {"train.steps": 3}, slot="base") -> the configuration of a run from the converted stage."""

    def make(*parts: dict[str, Any], run: str = "run", slot: str = "base") -> RunConfig:
        values = {"run_dir": tmp_path / run, "train.init_from": converted / f"{slot}_unet", "text.encoder": converted}
        values = {**values, "data.path": pictures}
        for part in parts:
            values.update(part)
        return parse([f"--{key}={value}" for key, value in values.items()])

    return make


@pytest.fixture(scope="module")
def trained(converted: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, float]:
    """A finished adapter of stage I: its run, and the held-out loss before and after."""
    run = tmp_path_factory.mktemp("trained") / "run"
    values = {
        "run_dir": run,
        "train.init_from": converted / "base_unet",
        "text.encoder": converted,
        "data.path": pictures,
    }
    steps = {"train.steps": 60}
    trainer = Trainer(StageTask(parse([f"--{k}={v}" for k, v in {**values, **BASE, **LORA, **steps}.items()])))
    before = held_out_loss(trainer)
    trainer.fit()
    return run, before, held_out_loss(trainer)
