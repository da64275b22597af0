"""train.py: train one stage of the cascade.

    python train.py --config configs/shapes/base64.yaml [--optim.lr 1e-4 ...]
    accelerate launch train.py --config configs/shapes/base64.yaml [...]

The same command goes on where an earlier run in the same run_dir stopped. Exit codes: 0 done, or saved after a
signal or the time limit; 1 stopped by non-finite losses, too many unusable pictures, or data or a disk that fail; 2 a
configuration that cannot run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imagen.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from imagen.cascade.training.config.parsing import parse

    try:
        config = parse(arguments)
    except ConfigError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    from imagen.cascade.training.task import StageTask
    from imagen.data.decode import NothingUsable
    from imagen.training.trainer import Trainer, TrainingStopped

    try:
        trainer = Trainer(StageTask(config))
        finished = trainer.fit()
    except ConfigError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except TrainingStopped as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except NothingUsable as error:
        print(f"train.py: stopped: {_reason(error)}; mend the data or what it is said to be", file=sys.stderr)
        return 1
    except OSError as error:  # a shard that is not there, a full disk
        print(
            f"train.py: stopped: {_reason(error)}; the same command goes on from the last resume point", file=sys.stderr
        )
        return 1
    if not finished and trainer.accelerator.is_main_process:
        print(f"train.py: saved at step {trainer.step}; the same command goes on from there", file=sys.stderr)
    return 0


def _reason(error: Exception) -> str:
    """The error's message; out of a loading worker it comes with the worker's traceback in front."""
    last = str(error).strip().splitlines()[-1]
    return last.rpartition(f"{type(error).__name__}: ")[2]
