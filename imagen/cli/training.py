"""What every command that trains does with what it has read: train, say how it ended and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imagen.errors import ConfigError, Stopped, run_command

if TYPE_CHECKING:
    from imagen.training.config.sections import RunSettings
    from imagen.training.task import Task

ConfigT = TypeVar("ConfigT", bound="RunSettings")


def run_training(
    name: str,
    read: Callable[[], ConfigT],
    load_task: Callable[[], Callable[[ConfigT], Task[Any]]],
    next_command: Callable[[ConfigT], str],
) -> int:
    """Train what `read` reads; returns the exit code: 0 done, or saved after a signal or the time limit; 1 stopped by
    non-finite losses, too many unusable pictures, or data or a disk that fail; 2 a configuration that cannot run.

    Args:
        name: of the command, in front of what is told.
        read: the configuration, before anything heavy is loaded.
        load_task: loads what makes a task of the configuration, and with it the libraries.
        next_command: what to do with a finished run.
    """
    begun: list[str] = []
    work = partial(_train, name, read, load_task, next_command, begun)
    return run_command(name, work, partial(what_is_kept, begun), ConfigError)


def what_is_kept(begun: Sequence[str]) -> str:
    """What an end says of the runs whose folders are `begun`: the same command goes on where something was saved."""
    if not begun:  # stopped while libraries were loaded, which must not be tried again now
        return ""
    from imagen.training.state.checkpoint import StateFolder

    saved = any(StateFolder(Path(run) / "state").steps() for run in begun)
    return "; the same command goes on from the last resume point" if saved else "; no resume point was saved"


def _train(
    name: str,
    read: Callable[[], ConfigT],
    load_task: Callable[[], Callable[[ConfigT], Task[Any]]],
    next_command: Callable[[ConfigT], str],
    begun: list[str],
) -> None:
    """Train; the run's folder is added to `begun`. Raises: ConfigError, Stopped."""
    config = read()
    make_task = load_task()
    from imagen.data.decode import NothingUsable
    from imagen.training.processes import alone_in
    from imagen.training.trainer import Trainer, TrainingStopped

    begun.append(config.run_dir)
    try:
        with alone_in(config.run_dir):
            trainer = Trainer(make_task(config))
            finished = trainer.fit()
    except (NothingUsable, OSError, TrainingStopped) as error:  # OSError: a shard that is not there, a full disk
        last = str(error).strip().splitlines()[-1]  # behind the traceback of a loading worker
        hint = "; mend the data or what it is said to be" if isinstance(error, NothingUsable) else ""
        raise Stopped(last.rpartition(f"{type(error).__name__}: ")[2] + hint) from error
    if trainer.accelerator.is_main_process:
        end = f"done, {trainer.step} steps; next: {next_command(config)}"
        going_on = f"saved at step {trainer.step}; the same command goes on from there"
        print(f"{name}: {end if finished else going_on}", file=sys.stderr)
