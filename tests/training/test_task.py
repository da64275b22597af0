"""The trainer with a task that is none of a diffusion: everything that it promises holds for whatever is trained."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from imagen.errors import ConfigError
from imagen.training.config.parsing import parse, to_yaml
from imagen.training.loader import make_loader
from imagen.training.processes import Processes
from imagen.training.telling import Progress
from imagen.training.trackers import Trackers
from imagen.training.trainer import Trainer, TrainingStopped
from tests.training.regression import MapConfig, RegressionConfig, RegressionTask, lines, stop_after


def newest(config: RegressionConfig) -> dict[str, torch.Tensor]:
    """Weights, average and optimizer of the last resume point, under one name each."""
    state = sorted((Path(config.run_dir) / "state").iterdir())[-1]
    assert sorted(path.name for path in state.iterdir()) == [
        "ema.safetensors", "linear.safetensors", "optimizer.pt", "state.json",
    ]  # fmt: skip
    found = {
        f"{name} {key}": v for name in ("ema", "linear") for key, v in load_file(state / f"{name}.safetensors").items()
    }
    moments = torch.load(state / "optimizer.pt", weights_only=True)["state"]
    return found | {f"{number} {key}": value for number, one in moments.items() for key, value in one.items()}


def same(one: RegressionConfig, other: RegressionConfig) -> bool:
    a, b = newest(one), newest(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_it_learns_and_tells_its_groups_and_what_is_held_out(make: Callable[..., RegressionConfig]) -> None:
    config = make(train={"steps": 60})
    assert Trainer(RegressionTask(config)).fit()
    told = lines(config)
    losses = [line for line in told if "loss" in line]
    assert losses[0].keys() == {"step", "images", "loss", "loss_even", "loss_odd", "grad_norm", "lr", "skipped"}
    assert losses[-1]["loss"] < 0.2 * losses[0]["loss"]
    measured = [line for line in told if "val_loss" in line]
    assert [line["step"] for line in measured] == list(range(6, 61, 6))
    assert measured[-1]["val_loss"] < measured[0]["val_loss"] < measured[0]["val_loss/worst"]
    run = Path(config.run_dir)
    exported = load_file(run / "model" / "linear.safetensors")
    assert torch.equal(exported["map.weight"], newest(config)["ema map.weight"])
    with Image.open(run / "samples" / "step-00000060.png") as drawn:
        pixels = drawn.tobytes()
    assert pixels == exported["map.weight"].numpy().tobytes()
    assert not torch.equal(exported["map.weight"], newest(config)["linear map.weight"])


def test_three_steps_are_those_of_torch_by_hand(make: Callable[..., RegressionConfig]) -> None:
    """The gradient of the mean loss, clipped, at the step's rate; the average behind each; and what is told of them."""
    config = make(
        optim={"clip_norm": 0.5, "weight_decay": 0.1, "schedule": "linear"},
        train={"steps": 3, "log_every": 1, "accumulation": 2}, validation={"every": 3},
    )  # fmt: skip
    task = RegressionTask(config)
    trainer = Trainer(task)
    twin, average = copy.deepcopy(trainer.module), copy.deepcopy(trainer.module)
    groups = [{"params": [twin.map.weight], "weight_decay": 0.1}, {"params": [twin.map.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)
    batches, expected = iter(make_loader(config, trainer.source, 0, 0, 1)), []
    for step, share in enumerate((0, 1 / 2, 1)):
        parts = [task.batch(next(batches), step, rows) for rows in (range(3), range(3, 6))]
        loss = torch.cat([task.losses(twin, part) for part in parts]).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * share
        optimizer.step()
        for mean, weight in zip(average.parameters(), twin.parameters(), strict=True):
            mean.data.lerp_(weight.data, 1 - min(0.5, (1 + step) / (10 + step)))
        expected.append([loss.item(), norm.item(), 0.05 * share])
    assert trainer.fit()
    found = [[line[key] for key in ("loss", "grad_norm", "lr")] for line in lines(config) if "loss" in line]
    assert found == [pytest.approx(step, rel=1e-5) for step in expected]
    for name, value in twin.named_parameters():
        torch.testing.assert_close(trainer.module.get_parameter(name), value)
        torch.testing.assert_close(trainer.ema.average[name], average.get_parameter(name).detach())
    task.module = average
    assert lines(config)[-1] == {"step": 3, **{key: pytest.approx(value) for key, value in task.measure(3).items()}}


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_resuming_is_exact(make: Callable[..., RegressionConfig], stop: int) -> None:
    whole, parts = make("whole"), make("parts")
    assert Trainer(RegressionTask(whole)).fit()
    assert not stop_after(Trainer(RegressionTask(parts)), stop).fit()
    second = Trainer(RegressionTask(parts))
    assert second.step == stop
    assert second.fit()
    assert same(whole, parts)
    assert lines(whole) == lines(parts)
    assert newest(parts)["linear shown"] == 12 * 6  # a buffer is kept like a weight


def test_a_run_that_goes_on_tells_its_speed_and_what_is_left_from_there(
    make: Callable[..., RegressionConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)), time=time.time)
    monkeypatch.setattr("imagen.training.trainer.time", clock)  # a second passes between two looks at it
    config = make(train={"log_every": 2})
    assert not stop_after(Trainer(RegressionTask(config)), 6).fit()
    second = Trainer(RegressionTask(config))
    assert second.progress.start == 6
    assert second.fit()
    told = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
    assert [line["clock"]["images_per_second"] for line in told if "loss" in line] == [12.0] * 6


def test_the_user_and_the_trackers_are_told_what_the_metrics_say(
    make: Callable[..., RegressionConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(train={"log_every": 6, "max_skipped_in_a_row": 6})
    (Path(str(config.data.path)) / "3.png").write_bytes(b"broken")
    task = RegressionTask(config)
    trainer, losses = Trainer(task, Progress(12, 0, told := io.StringIO(), every=0.0)), task.losses
    task.losses = lambda model, batch: losses(model, batch) * (math.nan if trainer.step < 6 else 1)  # type: ignore
    logged: list[tuple[int, dict[str, Any]]] = []
    monkeypatch.setattr(Trackers, "log", lambda self, values, step: logged.append((step, values)))
    assert trainer.fit()
    first, measured, last, _ = (json.loads(line) for line in (trainer.run / "metrics.jsonl").read_text().splitlines())
    assert (first["loss"], first["skipped"], last["skipped"]) == (None, 6, 6)
    speeds = [line["clock"].pop("images_per_second") for line in (first, last)]
    start, *lines = told.getvalue().splitlines()
    assert start.endswith(": 49 parameters on cpu, 12 pictures; the next line after step 6")
    shown = [line.split("  ") for line in lines]
    assert [line[:2] for line in shown[:4]] == [
        ["a line for the user"], ["step 6/12", "loss -"], ["step 6", f"held-out loss {measured['val_loss']:.5f}"],
        ["step 12/12", f"loss {last['loss']:.5f}"],
    ]  # fmt: skip
    assert [line[4:] for line in shown if "/" in line[0]] == [["6 skipped", "1 unusable pictures"]] * 2
    rates = [float(line[2].removesuffix(" img/s")) for line in shown if "/" in line[0]]
    assert rates == pytest.approx(speeds, abs=0.06)
    assert [step for step, _ in logged] == [6, 6, 12, 12]
    values = [entry for _, entry in logged]
    assert [values[place].pop("images_per_second") for place in (0, 2)] == pytest.approx(speeds, abs=0.01)
    assert values[0] == {"images": 36, "lr": first["lr"], "skipped": 6}, "what is not known is left out"
    assert values[2] == {key: value for key, value in last.items() if key not in ("step", "clock")}
    assert {"step": 6, **values[1]} == measured
    assert abs(last["clock"]["unix"] - time.time()) < 60


@pytest.mark.parametrize(("mine", "other", "stop"), [(0, 0, False), (1, 0, True), (0, 1, True), (1, 1, True)])
def test_sums_and_the_wish_to_stop_are_of_all_processes_and_the_norm_is_the_same_on_each(
    make: Callable[..., RegressionConfig], mine: int, other: int, stop: bool
) -> None:
    trainer = Trainer(RegressionTask(make()))
    others = torch.tensor([10.0, 20.0, 30.0, 40.0, other], dtype=torch.float64)
    trainer.processes = Processes(0, 2, lambda part: part + others)
    trainer.stopping.signal = 15 if mine else None
    sums = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert trainer._reduce(sums, torch.tensor(7.0)) == ([11.0, 22.0, 33.0, 44.0, 7.0], stop)


def test_each_process_has_its_share_of_every_micro_batch(make: Callable[..., RegressionConfig]) -> None:
    """Pictures and places in the global batch, of two processes as of one."""

    def shown(config: RegressionConfig, rank: int, world: int) -> list[tuple[list[str], range]]:
        task = RegressionTask(config)
        trainer, batch, seen = Trainer(task), task.batch, []
        trainer.rank, trainer.world = rank, world
        task.batch = lambda raw, step, rows: seen.append((raw["key"], rows)) or batch(raw, step, rows)  # type: ignore
        trainer.fit()
        return seen

    train = {"steps": 2, "batch_size": 8}
    whole = shown(make("whole", train=train), 0, 1)
    assert [rows for _, rows in whole] == [range(8)] * 2
    parts = [shown(make(f"part{rank}", train={**train, "accumulation": 2}), rank, 2) for rank in range(2)]
    assert [[rows for _, rows in part] for part in parts] == [
        [range(0, 2), range(4, 6)] * 2, [range(2, 4), range(6, 8)] * 2,
    ]  # fmt: skip
    for step, (keys, _) in enumerate(whole):
        pieces = [parts[rank][2 * step + micro][0] for micro in range(2) for rank in range(2)]
        assert [key for piece in pieces for key in piece] == keys


def test_only_the_first_process_writes_and_tells(make: Callable[..., RegressionConfig], monkeypatch: Any) -> None:
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    config = make(grid={"every": 0})
    assert Trainer(RegressionTask(config), Progress(12, 0, told := io.StringIO())).fit()
    assert not Path(config.run_dir).exists()
    assert told.getvalue() == ""


def test_accumulation_changes_rounding_alone(make: Callable[..., RegressionConfig]) -> None:
    runs = []
    for parts in (1, 3):
        config = make(f"run{parts}", train={"accumulation": parts})
        Trainer(RegressionTask(config)).fit()
        runs.append(newest(config))
    for key, value in runs[0].items():
        torch.testing.assert_close(runs[1][key], value, msg=key)


def test_what_is_not_finite_is_skipped_and_too_much_of_it_stops(make: Callable[..., RegressionConfig]) -> None:
    config = make(train={"max_skipped_in_a_row": 2, "log_every": 1})
    task = RegressionTask(config)
    trainer, losses = Trainer(task), task.losses
    task.losses = lambda model, batch: losses(model, batch) * (math.nan if trainer.step in (3, 7, 8, 9) else 1)  # type: ignore
    with pytest.raises(TrainingStopped, match="stopped at step 10: 4 steps in all and 3 in a row"):
        trainer.fit()
    assert [line["skipped"] for line in lines(config) if "loss" in line] == [0, 0, 0, 1, 1, 1, 1, 2, 3, 4]
    assert trainer.ema.updates == 6
    again = Trainer(RegressionTask(config))
    assert (again.step, again.ema.updates, again.skipped, again.skipped_in_a_row) == (10, 6, 4, 3)


def test_pictures_that_cannot_be_used_are_written_down_and_too_many_stop(make: Callable[..., RegressionConfig]) -> None:
    config = make()
    folder = Path(str(config.data.path))
    (folder / "3.png").write_bytes(b"broken")
    assert Trainer(RegressionTask(config)).fit()
    noted = [json.loads(line) for line in (Path(config.run_dir) / "skipped.jsonl").read_text().splitlines()]
    assert {(note["key"], note["action"]) for note in noted} == {("3.png", "skipped")}
    for number in (4, 5):
        (folder / f"{number}.png").write_bytes(b"broken")
    other = make("other")
    with pytest.raises(TrainingStopped, match=r"stopped at step 2: 3 of 12 pictures cannot be used"):
        Trainer(RegressionTask(other)).fit()  # in the step that shows it, not behind the last one
    assert newest(other)["linear shown"] == 2 * 6


def test_a_start_from_another_model_and_notes_are_the_task_s(make: Callable[..., RegressionConfig]) -> None:
    first = make("first")
    Trainer(RegressionTask(first)).fit()
    told = io.StringIO()
    second = make("second", map={"start": f"{first.run_dir}/model"})
    trainer = Trainer(RegressionTask(second), Progress(12, 0, told))
    assert torch.equal(trainer.module.map.weight, newest(first)["ema map.weight"])
    trainer.fit()
    assert told.getvalue().splitlines()[1] == "a line for the user"
    again = Trainer(RegressionTask(second))
    assert torch.equal(again.module.map.weight, newest(second)["linear map.weight"])


def test_what_may_change_is_the_loop_s_and_the_task_s_to_say(make: Callable[..., RegressionConfig]) -> None:
    Trainer(RegressionTask(make(train={"steps": 2}))).fit()
    changed = {"map": {"start": "elsewhere"}, "train": {"steps": 2}}
    Trainer(RegressionTask(make(**changed)))
    with pytest.warns(UserWarning, match="changed configuration: map.noise 0.1 -> 0.2; train.steps 2 -> 12"):
        Trainer(RegressionTask(make(map={"noise": 0.2})))
    with pytest.raises(ConfigError, match="another configuration .train.seed 0 -> 1."):
        Trainer(RegressionTask(make(train={"steps": 2, "seed": 1})))
    stored = Path(make().run_dir) / "config.yaml"
    tree = yaml.safe_load(stored.read_text())
    tree["linear"] = tree.pop("map")
    stored.write_text(yaml.safe_dump(tree))
    with pytest.warns(UserWarning, match="linear is map now"):
        Trainer(RegressionTask(make(train={"steps": 2})))


def test_any_dataclass_is_read_from_a_file_and_the_command_line(
    make: Callable[..., RegressionConfig], tmp_path: Path
) -> None:
    config = make(map={"noise": 0.25})
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    command = ("train", "Fit a line.")
    assert parse(RegressionConfig, ["--config", str(path)], *command) == config
    changed = parse(RegressionConfig, ["--config", str(path), "--map.noise", "0.5"], *command)
    assert changed == replace(config, map=MapConfig(noise=0.5))
    with pytest.raises(ConfigError, match=r"unknown key 'map.noize' .* did you mean 'map.noise'"):
        parse(RegressionConfig, ["--config", str(path), "--map.noize", "0.5"], *command)
    with pytest.raises(ConfigError, match="run_dir is missing"):
        parse(RegressionConfig, [], *command)


def test_a_run_that_goes_on_with_more_or_fewer_pictures_says_so(make: Callable[..., RegressionConfig]) -> None:
    config = make(train={"steps": 2})
    Trainer(RegressionTask(config)).fit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(RegressionTask(config))
    (Path(str(config.data.path)) / "0.png").unlink()
    told = "the data had 12 pictures when the run was saved and has 11 now: from here on they come in another order"
    with pytest.warns(UserWarning, match=told):
        Trainer(RegressionTask(config))
