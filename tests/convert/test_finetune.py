"""Fine-tuning a converted stage of DeepFloyd IF's shape: all weights, captions, the variance, mistakes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen import ImagenPipeline
from imagen.cascade.training.compose import compose
from imagen.cascade.training.drawing import picture_generators
from imagen.cascade.training.inputs.batches import draw_batch
from imagen.cascade.training.task import StageTask
from imagen.cascade.variance import drop_variance
from imagen.cli.train import main
from imagen.conditions.text import Words
from imagen.data.sources import collate
from imagen.diffusion.schedules import level_log_snrs
from imagen.errors import ConfigError
from imagen.stages.load import load_scheduler
from imagen.training.telling import Progress
from imagen.training.trainer import Trainer
from tests.convert.finetuning import BASE, IF_STAGE, LORA, pipeline
from tests.factories import sample, seeded


def test_a_caption_that_is_cut_is_told_once(config: Any, recwarn: Any) -> None:
    trainer = Trainer(StageTask(config(BASE, {"text.max_length": 4, "text.padding": "masked"})))
    for _ in range(2):
        assert trainer.task.texts(Words(["a small green circle", "a star"]))[0].shape[1] == 4
    told = [str(w.message) for w in recwarn if "is cut at text.max_length 4: 'a small green circle'" in str(w.message)]
    assert len(told) == 1


def test_captions_are_read_as_in_sampling(config: Any, converted: Path) -> None:
    trainer, pipe = Trainer(StageTask(config(BASE, LORA))), pipeline(converted)
    text, mask = trainer.task.texts(Words(["  A Red CIRCLE "]))
    expected, expected_mask = pipe.reader.encode(["  A Red CIRCLE "])
    assert torch.equal(text, expected)
    assert torch.equal(mask, expected_mask)
    raw = collate([trainer.source[i] for i in range(4)])
    batch = trainer.task.batch_maker(raw, draw_batch(0, 0, 4, 1.0, True), 0, range(4))
    torch.testing.assert_close(batch.inputs["text"], pipe.reader.null(16)[0].expand(4, -1, -1), atol=1e-6, rtol=0)
    null, _ = trainer.task.texts.null(2, 16)
    torch.testing.assert_close(null, batch.inputs["text"][:2], atol=1e-6, rtol=0)


def test_all_weights_are_trained_and_the_scheduler_survives(config: Any, converted: Path) -> None:
    settings = config(IF_STAGE, {"stage.size": 16, "train.steps": 2, "grid.every": 2, "grid.count": 2})
    trainer = Trainer(StageTask(settings))
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
        StageTask(config(IF_STAGE, {"stage.size": 16, "train.steps": 2, "sampling.sampler": "ddim", **grid, **prompts}))
    )
    stages = [
        stage or trainer.task.grids.own_stage(trainer.module.eval()) for stage in trainer.task.grids.cascade.values()
    ]
    with torch.no_grad():
        drawn = trainer.task.grids.draw(stages, trainer.task.grids._words(), "cascade")
    pipe = pipeline(converted)
    pipe.base_scheduler = trainer.task.grids.scheduler
    own = stages[0].settings
    settings = ("guidance_scale", "threshold", "threshold_p", "threshold_cap")
    pipe.set_stage_defaults("base", **{name: getattr(own, name) for name in settings})
    generators = picture_generators(trainer.config.train.seed, "cascade", range(2))
    made = sample(pipe, ["a red circle", "a blue star"], num_inference_steps=2, generator=generators, size=16)
    torch.testing.assert_close(drawn[0] / 2 + 0.5, made.images, rtol=0, atol=1e-4)


def test_a_dropped_variance_leaves_the_mean_alone(config: Any, converted: Path) -> None:
    settings = config(BASE, {"train.steps": 1, "optim.lr": 0.0})
    trainer = Trainer(StageTask(settings))
    trainer.progress = Progress(1, 0, stream := io.StringIO())
    whole = ImagenPipeline.from_pretrained(converted).base_unet
    z, text = torch.randn(1, 3, 16, 16, generator=seeded(1)), torch.randn(1, 77, 16, generator=seeded(2))
    with torch.no_grad():
        mean = whole(z, 500.0, text=text)[:, :3]  # not to the bit: some CPUs sum 3 rows in another order than 6
        torch.testing.assert_close(trainer.module(z, 500.0, text=text), mean, rtol=1e-5, atol=1e-6)
    trainer.fit()
    assert "the learned variance of train.init_from is dropped (6 -> 3 channels)" in stream.getvalue()
    assert load_scheduler(Path(settings.run_dir) / "model" / "scheduler").config.variance_type == "fixed_small"
    again = config(BASE, {"train.init_from": Path(settings.run_dir) / "model"}, run="again")
    with pytest.raises(ConfigError, match=r"learned no variance \(its output layer has 3 rows, 6 were expected\)"):
        Trainer(StageTask(again))


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
        mean = whole.base_unet(z, 500.0, text=text)[:, :3]
        torch.testing.assert_close(pipe.base_unet(z, 500.0, text=text), mean, rtol=1e-5, atol=1e-6)
    assert pipe.base_scheduler.config.variance_type == "fixed_small"
    assert torch.equal(pipe.base_scheduler.betas, whole.base_scheduler.betas)
    pipe.save_pretrained(tmp_path / "saved")
    given = {"size": 16, "num_inference_steps": 3}
    again = sample(pipeline(tmp_path / "saved"), "a red circle", **given).images
    assert torch.equal(again, sample(pipe, "a red circle", **given).images)
    with pytest.raises(ValueError, match="stage 'base' has no learned variance"):
        drop_variance(pipe)
