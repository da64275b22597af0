"""train.py: train one stage of the cascade.

    python train.py --config configs/shapes/base64.yaml [--optim.lr 1e-4 ...]
    accelerate launch train.py --config configs/shapes/base64.yaml [...]

The same command goes on where an earlier run in the same run_dir stopped. Exit codes: 0 done, or saved after a
signal or the time limit; 1 stopped by non-finite losses, too many unusable pictures, or data or a disk that fail; 2 a
configuration that cannot run.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imagen.cli.commands import typed
from imagen.errors import ConfigError, Stopped, run_command

if TYPE_CHECKING:
    from imagen.cascade.training.config.run import RunConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    begun: list[str] = []
    return run_command("train.py", partial(train, arguments, begun), partial(what_is_kept, begun), ConfigError)


def what_is_kept(begun: Sequence[str]) -> str:
    """What an end says of the runs whose folders are `begun`: the same command goes on where something was saved."""
    if not begun:  # stopped while libraries were loaded, which must not be tried again now
        return ""
    from imagen.training.state.checkpoint import StateFolder

    saved = any(StateFolder(Path(run) / "state").steps() for run in begun)
    return "; the same command goes on from the last resume point" if saved else "; no resume point was saved"


def train(arguments: Sequence[str] | None, begun: list[str]) -> None:
    """Train what the arguments describe; the run's folder is added to `begun`. Raises: ConfigError, Stopped."""
    from imagen.cascade.training.config.parsing import parse

    config = parse(arguments, typed("train").removeprefix("python "))
    from imagen.cascade.training.task import StageTask
    from imagen.data.decode import NothingUsable
    from imagen.training.processes import alone_in
    from imagen.training.trainer import Trainer, TrainingStopped

    begun.append(config.run_dir)
    try:
        with alone_in(config.run_dir):
            trainer = Trainer(StageTask(config))
            finished = trainer.fit()
    except (NothingUsable, OSError, TrainingStopped) as error:  # OSError: a shard that is not there, a full disk
        last = str(error).strip().splitlines()[-1]  # behind the traceback of a loading worker
        hint = "; mend the data or what it is said to be" if isinstance(error, NothingUsable) else ""
        raise Stopped(last.rpartition(f"{type(error).__name__}: ")[2] + hint) from error
    if trainer.accelerator.is_main_process:
        end = f"done, {trainer.step} steps; next: {next_command(config)}"
        going_on = f"saved at step {trainer.step}; the same command goes on from there"
        print(f"train.py: {end if finished else going_on}", file=sys.stderr)


def next_command(config: RunConfig) -> str:
    """What makes pictures with the stage of a run, or a pipeline of it."""
    run, slot = shlex.quote(config.run_dir), config.stage.name
    if config.lora.rank is not None:
        return f'{typed("sample")} "what to show" --model MODEL --lora {slot}={run}'
    if config.stage.lowres_size is None:
        words = ' "what to show"' if config.reads_text else ""
        guidance = " --guidance-method cfg" if config.needs_weaker else ""
        return f"{typed('sample')}{words} --model {run}{guidance}"
    return f"python -m imagen.training.compose --base BASE_RUN --{slot} {run} --out MODEL"


if __name__ == "__main__":
    sys.exit(main())
