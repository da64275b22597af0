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
from typing import TYPE_CHECKING

from imagen.cli.commands import typed
from imagen.cli.training import run_training

if TYPE_CHECKING:
    from imagen.cascade.training.config.run import RunConfig
    from imagen.cascade.training.task import StageTask


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_training("train.py", partial(read, arguments), load_task, next_command)


def read(arguments: Sequence[str] | None) -> RunConfig:
    """The configuration of a stage's run. Raises: ConfigError."""
    from imagen.cascade.training.config.parsing import parse

    return parse(arguments, typed("train").removeprefix("python "))


def load_task() -> type[StageTask]:
    """What makes a stage of its configuration."""
    from imagen.cascade.training.task import StageTask

    return StageTask


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
