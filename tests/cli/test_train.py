"""How train.py ends: its exit code and its last line, whatever ended it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from imagen.cascade.training import task
from imagen.cascade.training.config import parsing
from imagen.cascade.training.config.run import RunConfig
from imagen.cli.train import main
from imagen.data.decode import NothingUsable
from imagen.errors import ConfigError
from imagen.training import trainer

QUOTES = "''"
UNET = "unet: {kind: BaseUNet, text_dim: null}\n"
AGAIN = "; the same command goes on from the last resume point"


def ended(monkeypatch: pytest.MonkeyPatch, fit: Any, main_process: bool = True, begun: Any = lambda: None) -> int:
    """The command with a run that ends as told."""

    class Trainer:
        step = 7
        accelerator = SimpleNamespace(is_main_process=main_process)

        def __init__(self, of: RunConfig) -> None:
            assert of == RunConfig("a run")
            begun()

        def fit(self) -> bool:
            return bool(fit())

    monkeypatch.setattr(parsing, "parse", lambda arguments, _: RunConfig(*arguments))  # takes most of a second
    monkeypatch.setattr(task, "StageTask", lambda config: config)
    monkeypatch.setattr(trainer, "Trainer", Trainer)
    return main(["a run"])


@pytest.fixture(autouse=True)
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run's resume point, which is there."""
    monkeypatch.chdir(tmp_path)
    point = tmp_path / "a run" / "state" / "step-00000007"
    point.mkdir(parents=True)
    return point


def failing(error: BaseException) -> Any:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(("finished", "first", "said"), [
    (True, True, "train.py: done, 7 steps; next: python sample.py --model 'a run'\n"),
    (True, False, ""), (False, False, ""),
    (False, True, "train.py: saved at step 7; the same command goes on from there\n"),
])  # fmt: skip
def test_a_run_says_once_where_it_was_ended_or_what_comes_next(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, finished: bool, first: bool, said: str
) -> None:
    assert ended(monkeypatch, lambda: finished, first) == 0
    assert capsys.readouterr().err == said


WORKER = "Caught NothingUsable in DataLoader worker process 0.\nTraceback (most recent call last):\n  File x\n"


@pytest.mark.parametrize(("error", "code", "last"), [
    (trainer.TrainingStopped("stopped at step 9: too many"), 1, f"stopped at step 9: too many{AGAIN}"),
    (OSError(28, "No space left on device"), 1, f"[Errno 28] No space left on device{AGAIN}"),
    (NothingUsable("none fits"), 1, f"none fits; mend the data or what it is said to be{AGAIN}"),
    (
        NothingUsable(f"{WORKER}imagen.data.decode.NothingUsable: none fits\n"), 1,
        f"none fits; mend the data or what it is said to be{AGAIN}",
    ),
    (FileNotFoundError(f"{WORKER}FileNotFoundError: gone: a.tar"), 1, f"gone: a.tar{AGAIN}"),
    (ConfigError("text.cache lacks it"), 2, "text.cache lacks it"),
    (KeyboardInterrupt(), 130, AGAIN.removeprefix("; ")),
], ids=["stopped", "disk", "data", "worker", "shard", "mistake", "ctrl-c"])  # fmt: skip
@pytest.mark.parametrize("when", ["begun", "fit"])
def test_what_ends_a_run_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, error: BaseException, code: int, last: str, when: str
) -> None:
    how: dict[str, Any] = {"fit": lambda: True, when: failing(error)}
    assert ended(monkeypatch, **how) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("train.py: ")
    assert said.rstrip().endswith(last)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), NothingUsable("none"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["begun", "fit"])
def test_a_run_that_saved_nothing_promises_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, saved: Path, error: BaseException, when: str
) -> None:
    saved.rmdir()
    how: dict[str, Any] = {"fit": lambda: True, when: failing(error)}
    assert ended(monkeypatch, **how) != 0
    said = capsys.readouterr().err
    assert said.endswith("; no resume point was saved\n")
    assert "goes on" not in said


def test_a_stop_while_libraries_are_loaded_loads_none_again(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(parsing, "parse", lambda arguments, _: RunConfig("a run"))
    monkeypatch.setitem(sys.modules, "imagen.cascade.training.task", Interrupting("task"))
    monkeypatch.delitem(sys.modules, "imagen.training.state.checkpoint")
    assert main(["a run"]) == 130
    assert capsys.readouterr().err == "train.py: interrupted\n"
    assert "imagen.training.state.checkpoint" not in sys.modules


class Interrupting(ModuleType):
    """A module during whose import Ctrl-C comes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise KeyboardInterrupt


@pytest.mark.parametrize("run", ["null", "", "/proc/x", "a-file"])
def test_a_folder_that_cannot_be_a_run_s_is_one_line(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    monkeypatch.setattr(task, "StageTask", lambda config: pytest.fail(f"it trains in {config.run_dir}"))
    (tmp_path / "a-file").touch()
    (tmp_path / "c.yaml").write_text(f"run_dir: {run or QUOTES}\n{UNET}")
    given = ["--config", str(tmp_path / "c.yaml")]
    for words in (given, [*given, "--run_dir", run], [*given, f"--run_dir={run}"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("train.py: error: run_dir ")
        assert said.count("\n") == 1
        assert "Errno" not in said


def test_what_nobody_foresaw_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        ended(monkeypatch, lambda: 1 // 0)
