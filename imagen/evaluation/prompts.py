"""What ``--prompts`` means: lines of a file, prompts of a suite, or captions of data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import cast, get_args

from imagen.data import ShapesDataset
from imagen.evaluation.datasets import CONFIGS, data_section, data_source
from imagen.evaluation.suites import Prompt, SuiteName, suite


def counted_name(name: str) -> tuple[str, int | None]:
    """``NAME:NUM`` -> its parts; None where no number stands there. A file may be called so."""
    found = None if Path(name).exists() else re.fullmatch(r"(.+):(\d+)", name)
    return (name, None) if found is None else (found[1], int(found[2]))


def named_suite(name: str) -> list[Prompt] | None:
    """The prompts that ``heldout:NUM``, ``train:NUM`` or ``tune:NUM`` name, from the suite's first one on; None: it is
    no such name.

    Raises:
        ValueError: no prompts.
    """
    split, num = counted_name(name)
    if split not in get_args(SuiteName) or Path(name).exists():
        return None
    if num is None:
        raise ValueError(f"suite {name!r} lacks how many prompts: write {name}:2000, for example")
    return suite(cast("SuiteName", split), num)


def read_prompts(name: str) -> list[str]:
    """The prompts that ``--prompts`` names, in order.

    Args:
        name: a text file in UTF-8, a prompt each line, empty lines left out; a suite (:func:`named_suite`); or a YAML
            file with a section ``data``, of which every picture's first caption is taken. A file's first ones alone
            are ``FILE:NUM``.

    Raises:
        ValueError: no such file, nothing in it, or fewer than NUM.
    """
    prompts = named_suite(name)
    if prompts is not None:
        return [prompt.text for prompt in prompts]
    file, num = counted_name(name)
    path = Path(file)
    if not path.is_file():
        raise ValueError(
            f"prompts {name!r} are not there; expected a text file, a YAML file with a section data, or a suite such "
            "as heldout:2000"
        )
    source = _captions(path, num) if path.suffix.lower() in CONFIGS else _lines(path)
    found = list(islice(source, num))
    if not found or (num is not None and len(found) < num):
        raise ValueError(f"prompts {name!r}: {file!r} holds {len(found)}; expected {num or 'one at least'}")
    return found


def _lines(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts {str(path)!r} are not UTF-8 ({error.reason}): save them as UTF-8") from error
    return (line.strip() for line in text.splitlines() if line.strip())


def _captions(path: Path, num: int | None) -> Iterator[str]:
    source = data_source(data_section(path))
    if isinstance(source, ShapesDataset):
        if num is None:
            raise ValueError(f"prompts {str(path)!r}: the shapes world has no end; write {path}:2000, for example")
        return (source.scene(index)[1] for index in range(num))
    return (captions[0] for captions in source.captions() if captions)
