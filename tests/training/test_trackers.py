"""Trackers: they are told what metrics.jsonl says, and a run goes on whatever becomes of them."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from accelerate import Accelerator, tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imagen.errors import ConfigError
from imagen.training.config.parsing import parse
from imagen.training.config.resumed import changed_keys, migrate
from imagen.training.config.sections import RunSettings, TrainConfig
from imagen.training.telling import Progress
from imagen.training.trackers import Trackers, check_trackers
from imagen.training.trainer import Trainer, TrainingStopped
from tests.training.regression import RegressionConfig, RegressionTask, lines, stop_after


class Recorder(GeneralTracker):
    """Stands in for wandb and remembers its calls; the one called ``fails`` raises."""

    name = "wandb"
    requires_logging_directory = False
    calls: ClassVar[list[tuple[str, Any, Any]]] = []
    fails: ClassVar[str] = ""

    def __init__(self, run_name: str, **kwargs: Any) -> None:
        super().__init__()
        self._note("init", run_name, kwargs)

    def _note(self, what: str, value: Any = None, more: Any = None) -> None:
        self.calls.append((what, value, more))
        if what == self.fails:
            raise RuntimeError(f"no network\nin {what}")

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self._note("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._note("config", values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._note("log", step, values)

    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._note("images", step, {name: value.shape for name, value in values.items()})

    def finish(self) -> None:
        self._note("finish")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """As if wandb were installed, and this it."""
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD, LoggerType.WANDB])
    monkeypatch.setattr(Recorder, "calls", [])
    monkeypatch.setattr(Recorder, "fails", "")
    return Recorder


def named(calls: list[tuple[str, Any, Any]], what: str) -> list[tuple[Any, Any]]:
    return [call[1:] for call in calls if call[0] == what]


def events(config: RegressionConfig) -> EventAccumulator:
    return EventAccumulator(str(Path(config.run_dir) / "tensorboard"), {"scalars": 0, "images": 0}).Reload()


def pixels(path: Path) -> list[int]:
    with Image.open(path) as opened:
        return list(opened.tobytes())


@pytest.mark.parametrize("stop", [None, 5], ids=["killed", "stopped"])
def test_tensorboard_shows_every_step_of_the_log_and_what_is_repeated_once(
    make: Callable[..., RegressionConfig], stop: int | None
) -> None:
    loop = {"log_every": 2, "checkpoint_every": 4, "steps": 8, "keep_last": 9}
    config = make(train={**loop, "trackers": ("tensorboard",)}, grid={"every": 3})
    if stop is None:
        assert Trainer(RegressionTask(config)).fit()
        shutil.rmtree(Path(config.run_dir) / "state" / "step-00000008")  # as if killed before it was written
    else:
        assert not stop_after(Trainer(RegressionTask(config)), stop).fit()
    assert Trainer(RegressionTask(config)).fit()
    found = events(config)
    kept = list((Path(config.run_dir) / "tensorboard").glob("*/hparams.yml"))
    assert len(kept) == 1, "the configuration is in a run of its own, so there is one"
    assert yaml.safe_load(kept[0].read_text())["train.keep_last"] == 9
    values = [(event.step, event.value) for event in found.Scalars("loss")]
    expected = [(line["step"], pytest.approx(line["loss"])) for line in lines(config) if "loss" in line]
    assert values == expected
    assert [event.step for event in found.Scalars("val_loss")] == [6, 8]
    assert {"lr", "images", "images_per_second", "grad_norm", "loss_even", "val_loss/worst"} <= {
        *found.Tags()["scalars"]
    }
    for name in ("samples", "samples-mirrored"):
        pictures = found.Images(name)
        assert [picture.step for picture in pictures] == [3, 6, 8]
        drawn = Path(config.run_dir) / "samples" / f"step-00000006{name.removeprefix('samples')}.png"
        with Image.open(io.BytesIO(pictures[1].encoded_image_string)) as shown:
            assert list(shown.tobytes()) == pixels(drawn)


def test_a_tracker_is_told_the_configuration_the_numbers_and_the_pictures(
    make: Callable[..., RegressionConfig], recorder: type[Recorder]
) -> None:
    config = make("my run", train={"trackers": ("wandb",), "log_every": 6})
    assert Trainer(RegressionTask(config)).fit()
    assert [call[0] for call in recorder.calls] == [
        "init", "start", "config", "log", "log", "images", "images", "log", "log", "images", "images", "finish",
    ]  # fmt: skip
    assert recorder.calls[0][1] == "my run"
    ((told, _),) = named(recorder.calls, "config")
    assert {type(value) for value in told.values()} == {str, int, float, bool}
    assert (told["optim.lr"], told["optim.betas"], told["train.time_limit"]) == (0.05, "[0.9, 0.99]", "null")
    expected = [{key: value for key, value in line.items() if key != "step"} for line in lines(config)]
    found = [values for _, values in named(recorder.calls, "log")]
    assert [{key: value for key, value in line.items() if key != "images_per_second"} for line in found] == expected
    assert named(recorder.calls, "images")[:2] == [
        (6, {"samples": (1, 1, 64, 3)}),
        (6, {"samples-mirrored": (1, 1, 64, 3)}),
    ]


def test_a_run_goes_on_in_its_wandb_run_and_a_new_one_in_a_folder_has_its_own(
    make: Callable[..., RegressionConfig], recorder: type[Recorder]
) -> None:
    config = make(train={"trackers": ("wandb",)})
    assert not stop_after(Trainer(RegressionTask(config)), 4).fit()
    assert Trainer(RegressionTask(config)).fit()
    shutil.rmtree(Path(config.run_dir) / "state")
    assert not stop_after(Trainer(RegressionTask(config)), 1).fit()
    given = [more for _, more in named(recorder.calls, "init")]
    assert given[0] == given[1] == {"id": given[0]["id"], "resume": "allow", "name": "run", "dir": config.run_dir}
    assert len({one["id"] for one in given}) == 2
    assert given[2]["id"] == (Path(config.run_dir) / "wandb.id").read_text()
    assert len(named(recorder.calls, "finish")) == 3


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError, TrainingStopped])
def test_however_a_run_ends_what_was_told_is_written(
    make: Callable[..., RegressionConfig], recorder: type[Recorder], end: type[BaseException]
) -> None:
    task = RegressionTask(make(train={"trackers": ("wandb",), "max_skipped_in_a_row": 1, "log_every": 1}))
    trainer, losses = Trainer(task), task.losses

    def failing(model: Any, batch: Any) -> Any:
        if trainer.step == 4 and end is not TrainingStopped:
            raise end("now")
        return losses(model, batch) * (math.nan if trainer.step >= 3 else 1)

    task.losses = failing  # type: ignore[method-assign]
    with pytest.raises(end):
        trainer.fit()
    assert recorder.calls[-1][0] == "finish"
    assert [step for step, _ in named(recorder.calls, "log")] == [1, 2, 3, 4, 5][: 5 if end is TrainingStopped else 4]


@pytest.mark.parametrize("fails", ["init", "start", "config", "log", "images", "finish"])
def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on_without_it(
    make: Callable[..., RegressionConfig], recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    monkeypatch.setattr(recorder, "fails", fails)
    config = make(train={"trackers": ("wandb", "tensorboard")})
    told = io.StringIO()
    assert Trainer(RegressionTask(config), Progress(12, 0, told)).fit()
    told_of = [line for line in told.getvalue().splitlines() if line.startswith("train.trackers")]
    assert told_of == [f"train.trackers: wandb failed, and the run goes on without it: no network in {fails}"]
    assert recorder.calls[-1][0] == fails, "nothing is asked of it afterwards"
    assert [event.step for event in events(config).Scalars("loss")] == [3, 6, 9, 12]
    assert [event.step for event in events(config).Images("samples")] == [6, 12]


def test_only_the_first_process_has_trackers(
    make: Callable[..., RegressionConfig], recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    config = make(train={"trackers": ("wandb",)}, grid={"every": 0})
    Path(config.run_dir).mkdir()  # as the first one has
    assert Trainer(RegressionTask(config)).fit()
    assert recorder.calls == []
    assert list(Path(config.run_dir).iterdir()) == []


@pytest.mark.parametrize(("name", "shape", "options"), [
    ("tensorboard", (1, 2, 5, 3), {"dataformats": "NHWC"}), ("wandb", (1, 2, 5, 3), {}), ("swanlab", (1, 2, 5, 3), {}),
    ("aim", (2, 5, 3), {}), ("clearml", (2, 5, 3), {}), ("mlflow", None, None),
])  # fmt: skip
def test_each_tracker_is_shown_pictures_as_it_takes_them_or_not_at_all(
    tmp_path: Path, name: str, shape: Any, options: Any
) -> None:
    assert (shape is not None) == hasattr(tracking.LOGGER_TYPE_TO_CLASS[name], "log_images")
    path = tmp_path / "grid.png"
    Image.fromarray(np.arange(10, dtype=np.uint8).reshape(2, 5)).save(path)  # gray: shown in three channels
    seen: list[Any] = []

    def show(values: dict[str, Any], step: int, **options: Any) -> None:
        seen.append((values["samples"].shape, step, options))

    one = SimpleNamespace(name=name, **({} if shape is None else {"log_images": show}))
    lost: list[str] = []
    accelerator: Any = SimpleNamespace(trackers=[one])
    Trackers(accelerator, lost.append).show({"samples": path}, 7)
    assert seen == ([] if shape is None else [(shape, 7, options)])
    assert lost == []


# --- the key of the configuration ------------------------------------------------------------------------------------


def test_trackers_are_known_to_accelerate_and_installed_before_anything_is_loaded(
    make: Callable[..., RegressionConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    check_trackers(())
    check_trackers(("tensorboard",))
    monkeypatch.setattr(RegressionTask, "load", lambda *_: pytest.fail("loaded"))
    for name in ("all", "tensorbord"):
        with pytest.raises(ConfigError, match=rf"^train.trackers: '{name}' is no tracker; .* aim, clearml, .*, wandb"):
            Trainer(RegressionTask(make(train={"trackers": ("tensorboard", name)})))
    told = "^train.trackers: comet_ml is not installed: pip install comet_ml, or leave it out$"
    with pytest.raises(ConfigError, match=told):
        Trainer(RegressionTask(make(train={"trackers": ("comet_ml",)})))


def test_a_tracker_is_named_once() -> None:
    assert TrainConfig(trackers=("wandb", "aim")).trackers == ("wandb", "aim")
    with pytest.raises(ConfigError, match=r"train.trackers \['aim', 'wandb', 'aim'\] names one of them twice"):
        TrainConfig(trackers=("aim", "wandb", "aim"))


def read(*words: str) -> TrainConfig:
    return parse(RunSettings, ["--run_dir", "run", *words], "fit.py", "Fit a line.").train


def test_trackers_are_a_list_and_the_key_they_had_before_says_so(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: {trackers: [tensorboard, wandb]}\n")
    assert read("--config", str(path)).trackers == ("tensorboard", "wandb")
    assert read("--train.trackers", "[aim]").trackers == ("aim",)
    path.write_text("train: {tensorboard: false}\n")
    now = r"is called otherwise now: write train.trackers: \[tensorboard\] in place of true, and nothing in place of"
    with pytest.raises(ConfigError, match=rf"^train.tensorboard in {path} {now}"):
        read("--config", str(path))
    with pytest.raises(ConfigError, match=rf"^train.tensorboard in the command line {now}"):
        read("--train.tensorboard", "true")


@pytest.mark.parametrize(("before", "now"), [(True, ["tensorboard"]), (False, [])])
def test_a_run_from_before_goes_on_with_the_tracker_it_had(before: bool, now: list[str]) -> None:
    saved = {"train": {"tensorboard": before, "seed": 0}}
    tree, notes = migrate(saved)
    assert (tree, notes) == ({"train": {"seed": 0, "trackers": now}}, [])
    assert saved == {"train": {"tensorboard": before, "seed": 0}}, "what was read stays as it is"
    for trackers in ((), ("wandb",)):
        assert changed_keys(tree, RunSettings("run", train=TrainConfig(trackers=trackers))) == ([], [])
