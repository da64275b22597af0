"""train.py: train one stage of the cascade.

    python train.py --config configs/shapes/base64.yaml [--optim.lr 1e-4 ...]
    accelerate launch train.py --config configs/shapes/base64.yaml [...]

The same command goes on where an earlier run in the same run_dir stopped. Exit codes: 0 done, or saved after a
signal or the time limit; 1 stopped by non-finite losses or too many unusable pictures; 2 a configuration that cannot
run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imagen.training.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from imagen.training.parsing import parse

    try:
        config = parse(arguments)
    except ConfigError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    from imagen.data import NothingUsable
    from imagen.training.trainer import Trainer, TrainingStopped

    try:
        trainer = Trainer(config)
        finished = trainer.fit()
    except ConfigError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except TrainingStopped as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except NothingUsable as error:  # out of a loading worker it comes with the worker's traceback in front
        reason = str(error).strip().splitlines()[-1].rpartition(f"{NothingUsable.__name__}: ")[2]
        print(f"train.py: stopped: {reason}; mend the data or what the configuration says of it", file=sys.stderr)
        return 1
    if not finished and trainer.accelerator.is_main_process:
        print(f"train.py: saved at step {trainer.step}; the same command goes on from there", file=sys.stderr)
    return 0
