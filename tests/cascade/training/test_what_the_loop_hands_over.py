"""What the loop hands to its parts at each step. A run and its resumption agree on a mistake that both make."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.task import StageTask
from imagen.training.telling import Progress
from imagen.training.trainer import Trainer

SHARES = [0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4]  # of the peak: two steps of warm-up, then a line to 0 at step 6
OPTIM = {"lr": 1e-3, "warmup": 2, "schedule": "linear"}
SR = {
    "stage": {"name": "sr256", "size": 8, "lowres_size": 4, "prediction_type": "sample"},
    "unet.lowres_channels": 3,
}


@contextmanager
def steps_of_optimizers() -> Iterator[list[dict[str, float]]]:
    """The learning rate of every group at each optimizer.step: {"adam": ..., "muon": ...}."""
    seen: list[dict[str, float]] = []

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        seen.append({"muon" if group.get("muon") else "adam": group["lr"] for group in optimizer.param_groups})

    hook = register_optimizer_step_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


def test_every_update_has_the_learning_rate_of_its_step_and_the_log_says_it(
    config: Callable[..., RunConfig], read_metrics: Callable[..., list[dict[str, Any]]]
) -> None:
    settings = config(optim={**OPTIM, "muon_lr": 2e-2}, **{"train.log_every": 1, "train.checkpoint_every": 6})
    with steps_of_optimizers() as seen:
        assert Trainer(StageTask(settings)).fit()
    assert [rates["adam"] for rates in seen] == pytest.approx([1e-3 * share for share in SHARES])
    assert [rates["muon"] for rates in seen] == pytest.approx([2e-2 * share for share in SHARES])
    lines = read_metrics(settings.run_dir)
    assert [line["lr"] for line in lines] == pytest.approx([1e-3 * share for share in SHARES])
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["images"] for line in lines] == [4, 8, 12, 16, 20, 24]


def test_a_run_that_goes_on_takes_up_the_learning_rate_of_its_step(config: Callable[..., RunConfig]) -> None:
    """Also behind a skipped step: the rate is the step's, not the update's."""
    settings = config(optim=OPTIM, **{"train.checkpoint_every": 3})
    first = Trainer(StageTask(settings))
    first.task.objective = spoilt(first.task.objective, first, step=2)  # type: ignore[assignment]
    after_step = first._after_step

    def stop_after_three(stop: bool) -> None:
        after_step(stop)
        if first.step == 3:
            raise KeyboardInterrupt

    first._after_step = stop_after_three  # type: ignore[method-assign]
    with steps_of_optimizers() as seen, pytest.raises(KeyboardInterrupt):
        first.fit()
    with steps_of_optimizers() as later:
        assert Trainer(StageTask(settings)).fit()
    rates = [one["adam"] for one in (*seen, *later)]
    assert rates == pytest.approx([1e-3 * share for share in (*SHARES[:2], *SHARES[3:])])


def test_every_start_tells_where_it_begins_and_with_what(config: Callable[..., RunConfig]) -> None:
    settings = config(**{"train.log_every": 4, "train.checkpoint_every": 3})
    told = []
    for steps in (3, 6):
        task = StageTask(replace(settings, train=replace(settings.train, steps=steps)))
        trainer = Trainer(task, Progress(steps, 0, stream := io.StringIO()))
        trainer.fit()
        told.append(stream.getvalue().splitlines()[0])
        count = sum(weight.numel() for weight in trainer.module.parameters())
    where = f"in {settings.run_dir}: {count:,} parameters on cpu, pictures as they come; the next line after step"
    assert told == [f"starts at step 0 of 3 {where} 3", f"goes on at step 3 of 6 {where} 4"]


def spoilt(objective: Callable[..., torch.Tensor], trainer: Trainer, step: int) -> Callable[..., torch.Tensor]:
    return lambda unet, batch: objective(unet, batch) * (torch.nan if trainer.step == step else 1)


def networks_calls(trainer: Trainer) -> list[dict[str, Any]]:
    """What the network is called with while training."""
    seen: list[dict[str, Any]] = []

    def note(unet: torch.nn.Module, args: Any, kwargs: Any) -> None:
        seen.append({"z": args[0], "timestep": args[1], **kwargs})

    trainer.module.register_forward_pre_hook(note, with_kwargs=True)
    trainer.fit()
    return seen


def test_dropout_is_seeded_by_the_run_s_seed_the_step_and_the_row(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """The same seed twice would drop the same channels twice."""
    changes = {"train.steps": 3, "train.accumulation": 2}
    seeds = []
    for name, more in (("a", {}), ("again", {}), ("other", {"train.seed": 1})):
        calls = networks_calls(Trainer(StageTask(config(run_dir=str(tmp_path / name), **changes, **more))))
        seeds.append(torch.cat([call["dropout_seeds"] for call in calls]).tolist())
    assert len(seeds[0]) == len({*seeds[0]}) == 3 * 4
    assert seeds[0] == seeds[1]
    assert not {*seeds[0]} & {*seeds[2]}


def test_every_picture_of_every_step_has_noise_a_time_and_a_level_of_its_own(config: Callable[..., RunConfig]) -> None:
    """At t near 1 the state is the noise: shown by pictures that are all black, so that all that differs is drawn."""
    trainer = Trainer(StageTask(config(**SR, **{"train.steps": 3, "train.accumulation": 2})))
    make = trainer.task.batch_maker.__call__

    def black(raw: dict[str, Any], *rest: Any) -> Any:
        return make({**raw, "image": torch.zeros(2, 3, 8, 8), "lowres": torch.zeros(2, 3, 4, 4)}, *rest)

    trainer.task.batch_maker = black  # type: ignore[assignment]
    calls = networks_calls(trainer)
    assert len(calls) == 6
    rows = {name: torch.cat([call[name] for call in calls]) for name in ("z", "timestep", "lowres", "aug_timestep")}
    for name in ("timestep", "aug_timestep"):
        assert len({*rows[name].tolist()}) == 12
    assert not {*rows["timestep"].tolist()} & {*rows["aug_timestep"].tolist()}
    noise = torch.cat([rows["z"], rows["lowres"]]).flatten(1).double()
    alike = torch.nn.functional.cosine_similarity(noise[:, None], noise[None], dim=-1) - torch.eye(24)
    assert alike.abs().max() < 0.6  # rows of the state 192 numbers, the enlarged ones 48 and their neighbours'


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_captions_are_dropped_at_the_stage_s_own_share(config: Callable[..., RunConfig], share: float) -> None:
    trainer = Trainer(StageTask(config(**{"stage.text_dropout": share, "train.steps": 2, "train.batch_size": 8})))
    make, dropped = trainer.task.batch_maker.__call__, []

    def spy(raw: dict[str, Any], draws: Any, *rest: Any) -> Any:
        dropped.append(draws.drop.double().mean().item())
        return make(raw, draws, *rest)

    trainer.task.batch_maker = spy  # type: ignore[assignment]
    trainer.fit()
    assert dropped == [share, share]


@pytest.mark.parametrize(("seconds", "done"), [(50, 6), (70, 1)])
def test_the_time_limit_is_in_minutes(config: Callable[..., RunConfig], seconds: int, done: int) -> None:
    trainer = Trainer(StageTask(config(**{"train.time_limit": 1.0})))
    trainer.stopping.began -= seconds
    assert trainer.fit() == (done == 6)
    assert trainer.step == done


def test_pictures_asked_for_are_counted_from_the_first_step_of_a_run(config: Callable[..., RunConfig]) -> None:
    """A share of them may be unusable where a stream does not say how many there are."""
    first = Trainer(StageTask(config(**{"train.accumulation": 2})))
    first.stopping.signal = 1
    assert not first.fit()
    assert (first.step, first.bad.read) == (1, 4)
    again = Trainer(StageTask(config(**{"train.accumulation": 2})))
    assert again.fit()
    assert again.bad.read == 24


def test_the_end_of_a_run_is_told_measured_drawn_and_kept_whatever_the_intervals(
    config: Callable[..., RunConfig], read_metrics: Callable[..., list[dict[str, Any]]]
) -> None:
    held_out = {"kind": "shapes", "split": "heldout"}
    settings = config(
        **{"train.steps": 5, "train.log_every": 2, "train.checkpoint_every": 3, "train.keep_last": 9},
        grid={"every": 4, "count": 1, "num_inference_steps": 1},
        validation={"every": 2, "samples": 2, "levels": 2, "data": held_out},
    )
    assert Trainer(StageTask(settings)).fit()
    run, lines = Path(settings.run_dir), read_metrics(settings.run_dir)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 5]
    assert [line["step"] for line in lines if "val_loss" in line] == [2, 4, 5]
    grids, points = (sorted(path.stem for path in (run / folder).iterdir()) for folder in ("samples", "state"))
    assert grids == ["step-00000004", "step-00000005"]
    assert points == ["step-00000003", "step-00000005"]


def test_the_layers_at_the_ends_of_a_network_are_not_on_muon(config: Callable[..., RunConfig]) -> None:
    trainer = Trainer(StageTask(config(**{"optim.muon_lr": 1e-2})))
    on_muon = {id(p) for group in trainer.optimizer.param_groups if group.get("muon") for p in group["params"]}
    ends = tuple(f"{name}." for name in trainer.module.end_layers)
    matrices = {name: id(p) for name, p in trainer.module.named_parameters() if p.ndim >= 2}
    assert {name.rpartition(".")[0] for name in matrices if name.startswith(ends)} == {"conv_in", "conv_out"}
    assert on_muon == {number for name, number in matrices.items() if not name.startswith(ends)}


def test_a_run_goes_on_where_what_it_started_from_is_gone(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    first = config(run_dir=str(tmp_path / "first"), **{"train.steps": 2})
    Trainer(StageTask(first)).fit()
    start = {"unet": {}, "train.init_from": str(tmp_path / "first" / "model")}
    Trainer(StageTask(config(run_dir=str(tmp_path / "second"), **start, **{"train.steps": 2}))).fit()
    shutil.rmtree(tmp_path / "first")
    with pytest.warns(UserWarning, match="changed configuration: train.steps 2 -> 4$"):
        trainer = Trainer(StageTask(config(run_dir=str(tmp_path / "second"), **start, **{"train.steps": 4})))
    assert trainer.step == 2
    assert trainer.task.config.unet["model_channels"] == first.unet["model_channels"]
    assert trainer.fit()
