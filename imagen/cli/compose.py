"""The command ``python -m imagen.training.compose``: several stages and a text encoder -> one pipeline folder.

python -m imagen.training.compose --base runs/a --sr256 runs/b --sr1024 runs/c --text ENCODER --out my_model
python -m imagen.training.compose --base runs/new --sr256 my_model --sr1024 my_model --text my_model --out better
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from imagen.cli.commands import typed
from imagen.errors import ConfigError, config_errors, one_line, run_command

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def command(
    out: Path,
    base: Path | None = None,
    sr256: Path | None = None,
    sr1024: Path | None = None,
    text: str | None = None,
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
    max_shard_size: str | None = None,
    presets: Path | None = None,
) -> None:
    """Compose stage runs into one folder that sample.py --model and ImagenPipeline.from_pretrained load.

    Args:
        out: folder to write; of a pipeline that is there the parts are replaced, other files stay, so does a model card
            (README.md) that was not written by this command.
        base: run_dir of the base stage, or a composed pipeline to take it from.
        sr256: the same for the 64 -> 256 stage.
        sr1024: the same for the 256 -> 1024 stage.
        text: folder or Hub id of a T5 or CLIP; by default the one that the stages were trained with.
        dtype: of the stored weights.
        max_shard_size: split weight files above this size, for example 14MB.
        presets: YAML file of ways to sample the pipeline, by name and stage, as configs/shapes/presets.yaml; by default
            those of the pipelines that stages are taken from, and of a run's stage quality, balanced and fast: all, a
            half and a third of its steps.
    """
    if max_shard_size is not None and not re.fullmatch(r"0*[1-9]\d*(\.\d+)? ?[KMGT]B", max_shard_size, re.IGNORECASE):
        raise ConfigError(
            f"--max_shard_size {max_shard_size!r} is no size: give a number with KB, MB, GB or TB, as 14MB"
        )
    import torch
    import transformers

    from imagen.cascade.training.card import Trained, write_card
    from imagen.cascade.training.compose import compose, save

    transformers.utils.logging.disable_progress_bar()
    given = {"base": base, "sr256": sr256, "sr1024": sr1024}
    stages = {name: path for name, path in given.items() if path is not None}
    ways = None if presets is None else _read_yaml(presets)
    pipeline, trained = compose(stages, text, getattr(torch, DTYPES[dtype]), ways), {}
    for name, path in stages.items():  # before anything is written
        with config_errors(f"--{name}: "):
            trained[name] = Trained.of(path)
    save(pipeline, out, max_shard_size)
    write_card(pipeline, trained, out)
    print(f"{out}: {', '.join(name for name, part in pipeline.components.items() if part is not None)}")
    print(f'next: {typed("sample")} "what to show" --model {shlex.quote(str(out))}')


def _read_yaml(file: Path) -> Any:
    """What a YAML file holds. Raises: ConfigError, for one that cannot be read."""
    import yaml

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--presets {str(file)!r} cannot be read: {one_line(error)}") from error


def _renamed(word: str) -> str:
    """--base64 as --base: the earlier name is still read."""
    option, equals, value = word.partition("=")
    return f"--base{equals}{value}" if option == "--base64" else word


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from imagen.cli.options import call

    words = [_renamed(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    return run_command("compose", lambda: call(command, "compose", words), mistakes=ConfigError)
