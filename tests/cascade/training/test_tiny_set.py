"""tiny64, tiny256 and tiny1024 are one cascade, made by the commands that their heads name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.start.network import make_unet
from imagen.cli import pretrain_text
from imagen.cli.compose import main as compose
from imagen.cli.sample import main as sample
from imagen.cli.train import main as train
from imagen.data.shapes.dataset import ShapesDataset
from imagen.stages.folder import read_run
from imagen.stages.spec import SLOTS
from tests.source import ROOT

SMALL = ROOT / "configs" / "small"
NAMES = ("tiny64", "tiny256", "tiny1024")


def head(name: str) -> str:
    return (SMALL / f"{name}.yaml").read_text(encoding="utf-8").partition("run_dir:")[0]


def test_the_three_read_one_text_and_their_sizes_meet() -> None:
    configs = [parse(["--config", str(SMALL / f"{name}.yaml")]) for name in NAMES]
    assert [config.stage.name for config in configs] == [*SLOTS]
    assert [(config.stage.lowres_size, config.stage.size) for config in configs] == [(None, 64), (64, 256), (256, 1024)]
    assert all(config.text == configs[0].text for config in configs)
    assert {config.unet["text_dim"] for config in configs} == {pretrain_text.DEFAULT.d_model}
    assert all(config.unet["text_whitening"] and config.unet["text_pooling"] == "none" for config in configs)
    assert {(config.data.kind, config.data.path) for config in configs} == {("folder", "my_pictures")}
    assert {config.run_dir for config in configs} == {f"runs/small/{name}" for name in NAMES}
    for config, name in zip(configs, NAMES, strict=True):
        assert f"pretrain_text --out {config.text.encoder} --data.kind folder" in head(name)
        assert (config.train.mixed_precision, config.optim.muon_lr) == ("no", None), "both are slow without AMX"
        told = re.search(r"(\d+\.\d) million parameters", head(name))
        millions = sum(parameter.numel() for parameter in make_unet(config, device="meta").parameters()) / 1e6
        assert told
        assert float(told[1]) == round(millions, 1)


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with my_pictures/ and held_out/: twelve and two rendered PNGs, a caption beside each."""
    monkeypatch.chdir(tmp_path)
    for name in ("my_pictures", "held_out"):
        (tmp_path / name).mkdir()
    world = ShapesDataset(128, seed=3)
    for number in range(14):
        folder = tmp_path / ("my_pictures" if number < 12 else "held_out")
        picture = world[number]
        pixels = ((picture.image.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(picture.caption, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_newcomer_s_commands_make_one_model_that_samples(newcomer: Path) -> None:
    pictures = ["--data.kind", "folder", "--data.path", "my_pictures"]
    assert pretrain_text.main(["--out", "runs/small/t5", *pictures, "--t5.steps", "3", "--t5.num_layers", "1"]) == 0
    less = [  # 16 steps of 4 captions: tokens enough to whiten
        "--train.steps=16", "--train.batch_size=4", "--train.num_workers=0", "--optim.hold=0", "--grid.every=16",
        "--grid.count=1", "--grid.num_inference_steps=1", "--validation.every=16", "--validation.samples=1",
        "--validation.levels=2", "--validation.data.kind=folder", "--validation.data.path=held_out",
        "--data.min_size=64",  # of held-out pictures, too
    ]  # fmt: skip
    for name in NAMES:
        assert train(["--config", str(SMALL / f"{name}.yaml"), "--data.path", "my_pictures", *less]) == 0
        assert list(Path(f"runs/small/{name}/samples").glob("step-*16.png"))
        assert "val_loss" in Path(f"runs/small/{name}/metrics.jsonl").read_text()
        assert read_run(Path(f"runs/small/{name}")).encoder is not None
    stages = [word for slot, name in zip(SLOTS, NAMES, strict=True) for word in (f"--{slot}", f"runs/small/{name}")]
    assert compose([*stages, "--out", "my_model"]) == 0
    for part in ("runs", "my_pictures"):
        (newcomer / part).rename(newcomer / f"{part}-gone")
    assert sample(["a red circle", "--model", "my_model", "--steps", "1", "--out", "drawn"]) == 0
    (drawn,) = Path("drawn").glob("*.png")
    assert Image.open(drawn).size == (1024, 1024)
