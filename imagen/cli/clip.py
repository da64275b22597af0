"""``python -m imagen.cli.clip --config configs/shapes/clip64.yaml``: train a CLIP on pictures and their captions.

    accelerate launch -m imagen.cli.clip --config configs/shapes/clip64.yaml [--optim.lr 1e-3 ...]

Data, optimizer, average, resume points, metrics and exit codes are those of train.py; the same command goes on where an
earlier run in the same run_dir stopped. What comes of it, run_dir/model, is a folder of transformers'.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from imagen.cli.training import run_training

if TYPE_CHECKING:
    from imagen.clip.config import ContrastConfig
    from imagen.clip.task import ContrastTask

NAME = "imagen.cli.clip"
CLIP = (
    "Train a CLIP: pictures and captions into one space. Launch with `python -m` or `accelerate launch -m`; the same "
    "command goes on where an earlier run in run_dir stopped."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_training(NAME, partial(read, arguments), load_task, next_command)


def read(arguments: Sequence[str] | None) -> ContrastConfig:
    """The configuration of a run. Raises: ConfigError."""
    from imagen.clip.config import ContrastConfig
    from imagen.training.config.parsing import parse

    return parse(ContrastConfig, arguments, f"python -m {NAME}", CLIP)


def load_task() -> type[ContrastTask]:
    """What makes a CLIP of its configuration."""
    import transformers

    from imagen.clip.task import ContrastTask

    transformers.utils.logging.disable_progress_bar()
    return ContrastTask


def next_command(config: ContrastConfig) -> str:
    """What uses the CLIP of a run."""
    model = shlex.quote(f"{config.run_dir}/model")
    return f"python -m imagen.evaluation zeroshot --clip {model}, or sample.py ... --best-of 8 --rerank {model}"


if __name__ == "__main__":
    sys.exit(main())
