"""The loop: resuming, sharing a batch, skipping, telling, stopping, exporting."""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imagen.cascade.training.inputs.batches import Batch
from imagen.cascade.training.task import StageTask
from imagen.cli.train import main
from imagen.data.order import micro_positions
from imagen.errors import ConfigError
from imagen.stages.folder import read_run
from imagen.training.trainer import Trainer, TrainingStopped, sums_by_group
from unets import BaseUNet

WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"


def newest(run: str | Path) -> Path:
    return sorted((Path(run) / "state").iterdir())[-1]


def same_run(one: str | Path, other: str | Path) -> bool:
    """Whether two finished runs have the same weights, average, optimizer and export, bit for bit."""
    a, b = newest(one), newest(other)
    for name in ("unet.safetensors", "ema.safetensors"):
        x, y = load_file(a / name), load_file(b / name)
        if x.keys() != y.keys() or not all(torch.equal(x[key], y[key]) for key in x):
            return False
    states = [torch.load(path / "optimizer.pt", weights_only=True)["state"] for path in (a, b)]
    moments = all(torch.equal(states[0][i][key], states[1][i][key]) for i in states[0] for key in states[0][i])
    return moments and (Path(one) / WEIGHTS).read_bytes() == (Path(other) / WEIGHTS).read_bytes()


@pytest.fixture
def sr_changes():
    """A super-resolution stage on windows, with noise in the network's conditions and a worker."""
    return {
        "stage": {"name": "sr256", "size": 32, "lowres_size": 8, "prediction_type": "v_prediction"},
        "data.crop": 16,
        "unet": {
            "kind": "EfficientUNet", "channels": [8, 8], "num_res_blocks": [1, 1], "strides": [1, 2],
            "attention_levels": [1], "heads": 2, "norm_groups": 4, "text_dim": None,
        },
        "train.num_workers": 1,
        "train.accumulation": 2,
    }  # fmt: skip


@pytest.mark.parametrize("stage", ["base", "sr"])
@pytest.mark.parametrize("stop", [2, 3, 5])
def test_resuming_is_exact(config, read_metrics, tmp_path, sr_changes, stage, stop):
    if stage == "sr" and stop != 3:
        pytest.skip("one stop is enough with a worker")
    changes = {
        "train.steps": 6,
        "train.log_every": 2,
        "optim.schedule": "linear",
        **(sr_changes if stage == "sr" else {}),
    }
    if stage == "base":
        changes["unet.dropout"] = 0.2  # the network's own randomness, too
    whole = config(run_dir=str(tmp_path / "whole"), **changes)
    assert Trainer(StageTask(whole)).fit()
    parts = replace(whole, run_dir=str(tmp_path / "parts"))
    first = Trainer(StageTask(parts))
    after_step = first._after_step

    def ask_to_stop(done: bool) -> None:  # as SIGTERM does
        after_step(done or first.step == stop)
        if first.step == stop:
            raise KeyboardInterrupt

    first._after_step = ask_to_stop
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    assert newest(parts.run_dir).name == f"step-{stop:08d}"
    second = Trainer(StageTask(parts))
    assert second.step == stop
    assert second.fit()
    assert same_run(whole.run_dir, parts.run_dir)
    assert read_metrics(whole.run_dir) == read_metrics(parts.run_dir)


def test_a_run_that_lost_its_last_resume_point_repeats_the_steps(config, read_metrics):
    settings = config(**{"train.steps": 6, "train.checkpoint_every": 3, "train.log_every": 1})
    Trainer(StageTask(settings)).fit()
    expected, weights = read_metrics(settings.run_dir), (Path(settings.run_dir) / WEIGHTS).read_bytes()
    shutil.rmtree(newest(settings.run_dir))
    again = Trainer(StageTask(settings))
    assert again.step == 3
    again.fit()
    assert read_metrics(settings.run_dir) == expected
    assert (Path(settings.run_dir) / WEIGHTS).read_bytes() == weights


def test_a_finished_run_trains_no_further_and_exports_again(config):
    settings = config()
    Trainer(StageTask(settings)).fit()
    stage = Path(settings.run_dir) / "model" / "stage.json"
    stage.unlink()
    again = Trainer(StageTask(settings))
    assert again.fit()
    assert again.step == 6
    assert json.loads(stage.read_text())["step"] == 6


def test_accumulation_does_not_change_the_loss_curve(config, read_metrics, tmp_path):
    curves = []
    for parts in (1, 4):
        settings = config(
            run_dir=str(tmp_path / f"run{parts}"),
            **{
                "train.steps": 20, "train.batch_size": 8, "train.accumulation": parts, "train.dtype": "float64",
                "train.log_every": 1, "train.checkpoint_every": 50,
            },
        )  # fmt: skip
        Trainer(StageTask(settings)).fit()
        curves.append(read_metrics(settings.run_dir))
    for one, other in zip(*curves, strict=True):
        for key in ("loss", "loss_t0", "loss_t1", "loss_t2", "loss_t3", "grad_norm"):
            assert one[key] == pytest.approx(other[key], abs=1e-8)


def test_every_row_of_the_batch_is_used_once(config):
    """The pieces of a global batch, seen by the objective, are the batch: pictures, times and noise."""

    def rows_seen(accumulation: int) -> list[torch.Tensor]:
        trainer = Trainer(StageTask(config(**{"train.batch_size": 8, "train.accumulation": accumulation})))
        seen = []
        objective = trainer.task.objective

        def spy(unet, batch):
            seen.append(torch.cat([batch.image.flatten(1), batch.noise.flatten(1), batch.t[:, None]], dim=1))
            return objective(unet, batch)

        trainer.task.objective = spy
        trainer.fit()
        return [torch.cat(seen[i * accumulation : (i + 1) * accumulation]) for i in range(6)]

    whole = rows_seen(1)
    shutil.rmtree(trainer_dir(config))
    parts = rows_seen(4)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
    assert not torch.equal(whole[0], whole[1])
    assert micro_positions(8, 1, 4) == range(2, 4)


def trainer_dir(config) -> str:
    return config().run_dir


def break_loss(trainer: Trainer, steps: set[int], value: float = math.nan) -> None:
    objective = trainer.task.objective

    def broken(unet, batch):
        losses = objective(unet, batch)
        return losses * value if trainer.step in steps else losses

    trainer.task.objective = broken


def test_a_step_that_is_not_finite_is_skipped_and_counted(config, read_metrics):
    settings = config(**{"train.steps": 5, "train.log_every": 1, "train.checkpoint_every": 1, "train.keep_last": 9})
    trainer = Trainer(StageTask(settings))
    break_loss(trainer, {2})
    trainer.fit()
    states = sorted((Path(settings.run_dir) / "state").iterdir())
    weights = [load_file(path / "unet.safetensors") for path in states]
    averages = [load_file(path / "ema.safetensors") for path in states]
    for changed, before, after in ((True, 0, 1), (False, 1, 2), (True, 2, 3)):
        for tensors in (weights, averages):
            assert any(not torch.equal(tensors[before][k], tensors[after][k]) for k in tensors[0]) == changed
    assert all(torch.isfinite(value).all() for value in weights[-1].values())
    lines = read_metrics(settings.run_dir)
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 1]
    assert lines[2]["loss"] is None
    assert lines[3]["loss"] is not None
    assert trainer.ema.updates == 4


def test_an_infinite_gradient_of_a_finite_loss_is_skipped(config):
    trainer = Trainer(StageTask(config(**{"train.steps": 3})))
    parameter = next(trainer.module.parameters())
    parameter.register_hook(lambda grad: grad * (math.inf if trainer.step == 1 else 1))
    trainer.fit()
    assert (trainer.skipped, trainer.ema.updates) == (1, 2)
    assert torch.isfinite(parameter).all()


def test_too_many_in_a_row_stop_the_run(config):
    settings = config(**{"train.steps": 50, "train.max_skipped_in_a_row": 3, "train.max_skipped": 100})
    trainer = Trainer(StageTask(settings))
    break_loss(trainer, set(range(5, 50)))
    with pytest.raises(TrainingStopped, match="stopped at step 9: 4 steps in all and 4 in a row .* Lower optim.lr"):
        trainer.fit()
    resumed = Trainer(StageTask(settings))
    assert (resumed.step, resumed.skipped, resumed.skipped_in_a_row) == (9, 4, 4)
    assert all(torch.isfinite(value).all() for value in resumed.module.state_dict().values())


def test_a_run_that_was_stopped_goes_on_once_it_is_mended(config):
    settings = config(**{"train.steps": 14, "train.max_skipped_in_a_row": 3, "train.max_skipped": 3})
    trainer = Trainer(StageTask(settings))
    break_loss(trainer, set(range(5, 50)))
    with pytest.raises(TrainingStopped, match=r"4 steps in all .*train.max_skipped 3, train.max_skipped_in_a_row 3"):
        trainer.fit()
    mended = Trainer(StageTask(settings))
    mended.fit()
    assert (mended.step, mended.skipped) == (14, 4)


def test_too_many_in_all_stop_the_run(config):
    trainer = Trainer(StageTask(config(**{"train.steps": 50, "train.max_skipped_in_a_row": 3, "train.max_skipped": 4})))
    break_loss(trainer, set(range(0, 50, 2)), math.inf)
    with pytest.raises(TrainingStopped, match="stopped at step 9: 5 steps in all and 1 in a row"):
        trainer.fit()


def test_clipping_bounds_the_gradient_but_not_the_logged_norm(config):
    trainer = Trainer(StageTask(config(**{"optim.clip_norm": 1e-3, "train.steps": 2})))
    norms, step = [], trainer.optimizer.step

    def spy():
        grads = [p.grad for p in trainer.module.parameters() if p.grad is not None]
        norms.append(torch.cat([g.flatten() for g in grads]).norm().item())
        step()

    trainer.optimizer.step = spy
    trainer.fit()
    assert norms == pytest.approx([1e-3] * 2, rel=1e-3)
    line = json.loads((Path(trainer.run) / "metrics.jsonl").read_text())
    assert line["grad_norm"] > 2e-3


def test_loss_falls_when_eight_pictures_are_learned_by_heart(config, tmp_path, read_metrics):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), ((i * 37) % 256, (i * 91) % 256, (i * 53) % 256)).save(folder / f"{i}.png")
    settings = config(
        **{
            "data.kind": "folder", "data.path": str(folder), "train.steps": 120, "train.batch_size": 8,
            "optim.lr": 5e-3, "optim.warmup": 5, "train.log_every": 20, "train.checkpoint_every": 500,
        },
    )  # fmt: skip
    Trainer(StageTask(settings)).fit()
    losses = [line["loss"] for line in read_metrics(settings.run_dir)]
    assert losses[-1] < 0.3 * losses[0]


def test_the_exported_stage_reproduces_the_average(config):
    settings = config(**{"train.steps": 4, "ema.decay": 0.5})
    trainer = Trainer(StageTask(settings))
    trainer.fit()
    stage = read_run(Path(settings.run_dir))
    unet = BaseUNet.from_pretrained(stage.unet)
    z, timestep = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    raw = trainer.module(z, timestep)
    with trainer.ema.swapped_in(trainer.module):
        expected = trainer.module(z, timestep)
    assert torch.equal(unet(z, timestep), expected)
    assert not torch.equal(raw, expected)
    record = json.loads((Path(settings.run_dir) / "model" / "stage.json").read_text())
    assert (stage.slot, stage.defaults.size, record["step"], record["images"]) == ("base", 8, 4, 16)
    config_file = json.loads((stage.scheduler / "scheduler_config.json").read_text())
    assert config_file["prediction_type"] == "sample"
    assert len(config_file["trained_betas"]) == 1000


def test_starting_from_an_exported_stage(config, tmp_path):
    first = config(**{"train.steps": 3})
    Trainer(StageTask(first)).fit()
    second = config(run_dir=str(tmp_path / "second"), **{"train.init_from": f"{first.run_dir}/model", "train.steps": 3})
    trainer = Trainer(StageTask(second))
    exported = load_file(Path(first.run_dir) / WEIGHTS)
    assert all(torch.equal(value, exported[name]) for name, value in trainer.module.state_dict().items())
    assert all(torch.equal(value, exported[name]) for name, value in trainer.ema.average.items())
    with pytest.raises(ConfigError, match="does not fit this unet"):
        Trainer(
            StageTask(
                config(
                    run_dir=str(tmp_path / "x"),
                    **{"train.init_from": first.run_dir + "/model", "unet.model_channels": 16},
                )
            )
        )


def test_going_on_with_another_configuration(config):
    Trainer(StageTask(config(**{"train.steps": 2}))).fit()
    with pytest.raises(ConfigError, match="another configuration .train.seed 0 -> 1.: use another run_dir"):
        Trainer(StageTask(config(**{"train.seed": 1})))
    with pytest.warns(UserWarning, match="train.steps 2 -> 3"):
        trainer = Trainer(StageTask(config(**{"train.steps": 3, "train.log_every": 1})))
    assert trainer.fit()
    assert trainer.step == 3


def test_sigterm_saves_and_exits_0(write_config, tmp_path, capsys):
    path = write_config(**{"train.steps": 100_000, "train.checkpoint_every": 100_000, "train.num_workers": 1})
    before = signal.getsignal(signal.SIGTERM)
    metrics = tmp_path / "run" / "metrics.jsonl"

    def send():
        while not (metrics.exists() and metrics.read_text().count("\n") > 1):
            stopped.wait(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    stopped = threading.Event()
    threading.Thread(target=send, daemon=True).start()
    assert main(["--config", str(path)]) == 0
    step = int(newest(tmp_path / "run").name.removeprefix("step-"))
    assert f"saved at step {step}" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "model" / "stage.json").read_text())["step"] == step
    assert signal.getsignal(signal.SIGTERM) is before


def test_time_limit_saves_and_ends(config):
    trainer = Trainer(
        StageTask(config(**{"train.steps": 100_000, "train.time_limit": 0.01, "train.checkpoint_every": 100_000}))
    )
    assert not trainer.fit()
    assert newest(trainer.run).name == f"step-{trainer.step:08d}"


def test_sums_per_quarter():
    batch = Batch(torch.zeros(0), torch.zeros(0), torch.tensor([0.1, 0.24, 0.5, 0.999]), {})
    sums = sums_by_group(torch.tensor([1.0, 2.0, 4.0, 8.0]), StageTask.group(None, batch), 4)
    assert sums.tolist() == [3, 0, 4, 8, 2, 0, 1, 1]
