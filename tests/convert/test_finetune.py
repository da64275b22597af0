"""Fine-tuning a converted stage of DeepFloyd IF's shape: adapters, and what the pipelines make of them."""

from __future__ import annotations

import copy
import io
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import IFPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from imagen import ImagenPipeline
from imagen.cascade.adapters import WEIGHTS, read_adapter
from imagen.cascade.variance import drop_variance
from imagen.cli.png import read_settings
from imagen.cli.sample import main as sample_main
from imagen.cli.train import main
from imagen.data import collate
from imagen.diffusion.sampling import level_log_snrs
from imagen.training.batches import Words
from imagen.training.compose import compose, load_scheduler
from imagen.training.config import RunConfig
from imagen.training.errors import ConfigError
from imagen.training.metrics import Progress
from imagen.training.parsing import parse
from imagen.training.randomness import draw_batch
from imagen.training.trainer import Trainer
from tests.factories import sample, seeded

CAPTIONS = ["a red circle", "two blue star", "a small green circle", "a blue star"]
IF_STAGE = {
    "stage.schedule.kind": "cosine_discrete",
    "text.max_length": 77,
    "text.padding": "visible",
    "text.unconditional": "empty",
    "text.lowercase": "true",
    "data.kind": "folder",
    "optim.warmup": 0,
    "train.batch_size": 4,
    "train.num_workers": 0,
    "train.log_every": 2,
    "train.checkpoint_every": 100,
    "grid.every": 0,
}
BASE = {**IF_STAGE, "stage.size": 16, "train.drop_variance": "true"}
SECOND = {
    **IF_STAGE,
    "stage.name": "sr256",
    "stage.size": 32,
    "stage.lowres_size": 16,
    "stage.aug_space": "upsampled",
    "stage.aug_schedule.kind": "cosine_discrete",
    "stage.lowres_mode": "bilinear_corners",
}
LORA = {"lora.rank": 4, "lora.alpha": 8, "optim.lr": 5e-3, "ema.decay": 0.9}


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


def pipeline(folder: Path) -> ImagenPipeline:
    pipe = ImagenPipeline.from_pretrained(folder, safety_checker=None, watermarker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def held_out_loss(trainer: Trainer) -> float:
    """The loss on pictures that no run was shown and noise that it did not see."""
    generator = seeded(9)
    rows = [copy.copy(trainer.source[i]) for i in range(4)]
    raw = collate(rows)
    raw["image"] = raw["image"] + 0.05 * torch.randn(raw["image"].shape, generator=generator)
    losses = []
    with torch.no_grad():
        for step in range(8):
            batch = trainer.batch_maker(raw, draw_batch(99, step, 4, 0.0, True), 10_000 + step, range(4))
            losses.append(trainer.objective(trainer.unet, batch).mean())
    return float(torch.stack(losses).mean())


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
    trainer = Trainer(parse([f"--{k}={v}" for k, v in {**values, **BASE, **LORA, **steps}.items()]))
    before = held_out_loss(trainer)
    trainer.fit()
    return run, before, held_out_loss(trainer)


def test_an_adapter_lowers_the_held_out_loss_and_is_all_that_is_saved(trained: Any, converted: Path) -> None:
    run, before, after = trained
    print(before, after)
    assert after < 0.8 * before
    assert sorted(path.name for path in (run / "model").iterdir()) == [WEIGHTS, "stage.json"]
    saved = load_file(sorted((run / "state").iterdir())[-1] / "unet.safetensors")
    assert saved.keys() == {f"{n[:-7]}.default.weight" for n in read_adapter(run).tensors}
    assert read_adapter(run).alpha == 8


def test_an_adapter_acts_only_while_it_is_loaded(trained: Any, converted: Path) -> None:
    pipe = pipeline(converted)
    given = {"size": 16, "num_inference_steps": 4}
    before = {name: value.clone() for name, value in pipe.base_unet.state_dict().items()}
    plain = sample(pipe, "a red circle", **given).images
    pipe.load_lora_weights(trained[0])
    adapted = sample(pipe, "a red circle", **given).images
    assert (adapted - plain).abs().max() > 0.01
    with pytest.raises(ValueError, match="base holds an adapter: call merge_lora_weights or unload_lora_weights"):
        pipe.save_pretrained("never")
    with pytest.raises(ValueError, match="holds an adapter already"):
        pipe.load_lora_weights(trained[0])
    pipe.unload_lora_weights()
    after = pipe.base_unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert torch.equal(sample(pipe, "a red circle", **given).images, plain)
    with pytest.raises(ValueError, match="stage 'base' holds no adapter"):
        pipe.unload_lora_weights("base")


def test_the_command_line_loads_it_and_says_so(trained: Any, converted: Path, tmp_path: Path) -> None:
    words = ["a red circle", "--model", str(converted), "--size", "16", "--steps", "2", "--out"]
    assert sample_main([*words, str(tmp_path / "plain")]) == 0
    assert sample_main([*words, str(tmp_path / "adapted"), "--lora", str(trained[0])]) == 0
    plain, adapted = (next((tmp_path / name).glob("*.png")) for name in ("plain", "adapted"))
    assert not np.array_equal(np.asarray(Image.open(plain)), np.asarray(Image.open(adapted)))
    again = shlex.split(read_settings(adapted)["command"])[2:]
    assert sample_main([*again, "--out", str(tmp_path / "again")]) == 0
    repeated = next((tmp_path / "again").glob("*.png"))
    assert np.array_equal(np.asarray(Image.open(repeated)), np.asarray(Image.open(adapted)))


def test_merging_equals_the_adapter(trained: Any, converted: Path, tmp_path: Path) -> None:
    pipe = pipeline(converted)
    given = {"size": 16, "num_inference_steps": 4}
    pipe.load_lora_weights(trained[0] / "model" / WEIGHTS, stage="base")
    adapted = sample(pipe, "a red circle", **given).images
    pipe.merge_lora_weights()
    torch.testing.assert_close(sample(pipe, "a red circle", **given).images, adapted, atol=1e-4, rtol=0)
    pipe.save_pretrained(tmp_path / "merged")
    again = sample(pipeline(tmp_path / "merged"), "a red circle", **given).images
    torch.testing.assert_close(again, adapted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_diffusers_pipeline_loads_the_same_adapter(trained: Any, converted: Path, checkpoint: Path) -> None:
    """Its network then says what ours says, and so, by tests/convert/test_pipelines.py, do the pictures."""
    ours = pipeline(converted)
    theirs = IFPipeline.from_pretrained(
        checkpoint / "I", safety_checker=None, watermarker=None, requires_safety_checker=False
    )
    z, text = torch.randn(2, 3, 16, 16, generator=seeded(1)), torch.randn(2, 77, 16, generator=seeded(2))
    plain = theirs.unet(z, 500, text).sample
    ours.load_lora_weights(trained[0])
    theirs.load_lora_weights(trained[0] / "model")
    said = theirs.unet(z, 500, text).sample
    assert (said - plain).abs().max() > 0.01
    torch.testing.assert_close(ours.base_unet(z, 500.0, text=text), said, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_resuming_an_adapter_is_exact(config: Any, base_dtype: str) -> None:
    parts = (BASE, LORA, {"train.steps": 4, "train.checkpoint_every": 2, "lora.base_dtype": base_dtype})
    whole = config(*parts, run="whole")
    assert Trainer(whole).fit()
    broken = replace(whole, run_dir=str(Path(whole.run_dir).with_name("parts")))
    shutil.copytree(whole.run_dir, broken.run_dir)
    shutil.rmtree(Path(broken.run_dir) / "state" / "step-00000004")
    second = Trainer(broken)
    assert second.step == 2
    assert second.fit()
    for name in (f"model/{WEIGHTS}", "state/step-00000004/ema.safetensors", "state/step-00000004/unet.safetensors"):
        assert (Path(whole.run_dir) / name).read_bytes() == (Path(broken.run_dir) / name).read_bytes(), name


def test_an_adapter_of_stage_2_with_its_variance(config: Any, converted: Path) -> None:
    settings = config(SECOND, LORA, {"train.steps": 4, "stage.loss.vlb_weight": 0.01}, slot="sr256")
    trainer = Trainer(settings)
    assert trainer.unet.config.out_channels == 6
    assert trainer.fit()
    pipe = pipeline(converted)
    plain = sample(pipe, "a red circle", num_inference_steps=2)
    pipe.load_lora_weights(settings.run_dir, stage="sr256")
    adapted = sample(pipe, "a red circle", num_inference_steps=2)
    assert torch.equal(plain.stages[16], adapted.stages[16])
    assert not torch.equal(plain.images, adapted.images)


def test_captions_are_read_as_in_sampling(config: Any, converted: Path) -> None:
    trainer, pipe = Trainer(config(BASE, LORA)), pipeline(converted)
    text, mask = trainer.texts(Words(["  A Red CIRCLE "]))
    expected, expected_mask = pipe.reader.encode(["  A Red CIRCLE "])
    assert torch.equal(text, expected)
    assert torch.equal(mask, expected_mask)
    raw = collate([trainer.source[i] for i in range(4)])
    batch = trainer.batch_maker(raw, draw_batch(0, 0, 4, 1.0, True), 0, range(4))
    torch.testing.assert_close(batch.text, pipe.reader.null(16)[0].expand(4, -1, -1), atol=1e-6, rtol=0)
    assert not batch.drop.any()
    null, _ = trainer.texts.null(2, 16)
    torch.testing.assert_close(null, batch.text[:2], atol=1e-6, rtol=0)


def test_all_weights_are_trained_and_the_scheduler_survives(config: Any, converted: Path) -> None:
    settings = config(IF_STAGE, {"stage.size": 16, "train.steps": 2, "grid.every": 2, "grid.count": 2})
    trainer = Trainer(settings)
    assert trainer.fit()
    exported = ImagenPipeline.from_pretrained(converted).base_scheduler
    pipe = compose({"base64": Path(settings.run_dir)})
    scheduler = pipe.base_scheduler
    assert torch.equal(level_log_snrs(scheduler), level_log_snrs(exported))
    assert torch.equal(scheduler.betas, exported.betas)
    for name in ("trained_betas", "beta_schedule", "timestep_spacing", "variance_type", "prediction_type"):
        assert scheduler.config[name] == exported.config[name], name
    assert pipe.config["text"] == {"padding": "visible", "null": "empty", "lowercase": True}
    pipe.set_progress_bar_config(disable=True)
    assert sample(pipe, "a red circle", num_inference_steps=2).images.shape == (1, 3, 16, 16)


def test_the_cascade_s_grid_has_the_null_text_that_the_run_was_trained_with(config: Any, converted: Path) -> None:
    grid = {"grid.every": 2, "grid.count": 2, "grid.num_inference_steps": 2, "grid.cascade": converted}
    prompts = {"grid.prompts": "[a red circle, a blue star]"}
    trainer = Trainer(
        config(IF_STAGE, {"stage.size": 16, "train.steps": 2, "sampling.sampler": "ddim", **grid, **prompts})
    )
    drawn = trainer.grids.cascade.draw(trainer.unet.eval(), trainer.grids._words(), trainer.texts)
    pipe = pipeline(converted)
    pipe.base_scheduler = trainer.grids.scheduler
    own = trainer.grids.cascade.stages["base"]
    settings = ("guidance_scale", "threshold", "threshold_p", "threshold_cap")
    pipe.set_stage_defaults("base", **{name: own[name] for name in settings})
    generators = trainer.grids.cascade._generators(range(2))
    made = sample(pipe, ["a red circle", "a blue star"], num_inference_steps=2, generator=generators, size=16)
    torch.testing.assert_close(drawn[0] / 2 + 0.5, made.images, rtol=0, atol=1e-4)


def test_a_dropped_variance_leaves_the_mean_alone(config: Any, converted: Path) -> None:
    settings = config(BASE, {"train.steps": 1, "optim.lr": 0.0})
    trainer = Trainer(settings)
    trainer.progress = Progress(1, 0, stream := io.StringIO())
    whole = ImagenPipeline.from_pretrained(converted).base_unet
    z, text = torch.randn(1, 3, 16, 16, generator=seeded(1)), torch.randn(1, 77, 16, generator=seeded(2))
    with torch.no_grad():
        assert torch.equal(trainer.unet(z, 500.0, text=text), whole(z, 500.0, text=text)[:, :3])
    trainer.fit()
    assert "the learned variance of train.init_from is dropped (6 -> 3 channels)" in stream.getvalue()
    assert load_scheduler(Path(settings.run_dir) / "model" / "scheduler").config.variance_type == "fixed_small"
    again = config(BASE, {"train.init_from": Path(settings.run_dir) / "model"}, run="again")
    with pytest.raises(ConfigError, match=r"learned no variance \(its output layer has 3 rows, 6 were expected\)"):
        Trainer(again)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"lora.rank": 0}, "lora.rank 0 must be positive"),
        ({"lora.rank": 4, "lora.targets": "[to_q,to_w]"}, "no linear layer or convolution is called 'to_w'; there are"),
        ({"lora.alpha": 3}, "lora.alpha 3.0 has no effect without lora.rank"),
        ({"lora.rank": 4, "train.init_from": "null"}, "lora.rank 4 adapts a trained network: give train.init_from"),
        (
            {"lora.rank": 4, "stage.schedule.kind": "cosine"},
            "set stage.schedule.kind cosine_discrete, as train.init_from",
        ),
        ({"lora.rank": 4, "text.padding": "masked"}, "text.padding is 'masked': set text.padding visible"),
        ({"lora.rank": 4, "text.max_length": 32}, "text.max_length is 32: set text.max_length 77"),
        ({"lora.rank": 4, "stage.loss.vlb_weight": 0.1}, "stage.loss.vlb_weight 0.1 has no effect"),
        ({"text.cache": "x"}, "text.cache 'x' keeps captions as written and without padding"),
    ],
)
def test_mistakes_are_one_line(
    converted: Path, pictures: Path, tmp_path: Path, capsys: Any, change: Any, expected: str
) -> None:
    values = {"run_dir": tmp_path, "train.init_from": converted / "base_unet", "text.encoder": converted}
    values = {**values, "data.path": pictures, **BASE, **change}
    if change.get("train.init_from"):
        values.pop("train.drop_variance")
    assert main([f"--{key}={value}" for key, value in values.items()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("train.py: error: ")
    assert expected in lines[0]


def test_what_does_not_fit_a_network_is_refused(trained: Any, converted: Path, tmp_path: Path) -> None:
    pipe = pipeline(converted)
    with pytest.raises(ValueError, match="which this network lacks|has shape"):
        pipe.load_lora_weights(trained[0], stage="sr256")
    tensors = load_file(trained[0] / "model" / WEIGHTS)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.zeros(4, 3)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"has shape \(4, 3\), this network needs \(4, "):
        pipe.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="stage is 'II'; expected one of base, sr256, sr1024"):
        pipe.load_lora_weights(trained[0], stage="II")
    with pytest.raises(ValueError, match="holds no adapter; give a"):
        pipe.load_lora_weights(tmp_path / "nothing")
    assert not any("lora" in key for key in pipe.base_unet.state_dict())


def test_an_adapter_s_run_keeps_to_its_network(config: Any, converted: Path, tmp_path: Path) -> None:
    steps = {"train.steps": 1}
    assert Trainer(config(BASE, LORA, steps)).fit()
    shutil.copytree(converted, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"train\.init_from"):
        Trainer(config(BASE, LORA, steps, {"train.init_from": tmp_path / "other" / "base_unet"}))
    with pytest.raises(ConfigError, match="base64 is an adapter of .*load_lora_weights"):
        compose({"base64": Path(config(BASE).run_dir)})


def test_a_pipeline_drops_its_variance_and_says_so(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, whole = pipeline(converted), pipeline(converted)
    said: list[str] = []
    monkeypatch.setattr("imagen.cascade.variance.logger.warning", said.append)
    drop_variance(pipe)
    assert said == ["base: the learned variance is dropped (6 -> 3 rows at the output), fixed_small"]
    z, text = torch.randn(1, 3, 16, 16, generator=seeded(1)), torch.randn(1, 77, 16, generator=seeded(2))
    with torch.no_grad():
        assert torch.equal(pipe.base_unet(z, 500.0, text=text), whole.base_unet(z, 500.0, text=text)[:, :3])
    assert pipe.base_scheduler.config.variance_type == "fixed_small"
    assert torch.equal(pipe.base_scheduler.betas, whole.base_scheduler.betas)
    pipe.save_pretrained(tmp_path / "saved")
    given = {"size": 16, "num_inference_steps": 3}
    again = sample(pipeline(tmp_path / "saved"), "a red circle", **given).images
    assert torch.equal(again, sample(pipe, "a red circle", **given).images)
    with pytest.raises(ValueError, match="stage 'base' has no learned variance"):
        drop_variance(pipe)
