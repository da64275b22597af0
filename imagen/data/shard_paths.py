"""Where shards lie: paths, globs, folders and URLs with rows of numbers."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from .census import Census, Role
from .naming import is_hidden


def find_shards(patterns: Sequence[str], compressed: bool = False) -> list[Path]:
    """Paths of the shards that paths, globs and folders name, sorted, each once.

    Raises:
        ValueError: one that names nothing, or a compressed tar where they are not ``compressed``.
    """
    found: set[Path] = set()
    for pattern in patterns:
        folder = Path(pattern)
        paths = sorted(folder.glob("*.tar")) if folder.is_dir() else [Path(p) for p in glob.glob(pattern)]
        if folder.is_file():  # a name with brackets, say, that as a glob would mean others
            paths = [folder]
        if not paths and "://" in pattern:
            raise ValueError(
                f"shards {pattern!r} are behind a URL, read from start to end alone: set data.streaming true"
            )
        if not paths:
            raise ValueError(f"no shards at {pattern!r}; expected a tar file, a glob or a folder with *.tar")
        found.update(paths)
    packed = [path for path in sorted(found) if path.suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst")]
    if packed and not compressed:
        raise ValueError(
            f"shard {str(packed[0])!r} is compressed, so it cannot be read at random: unpack it to .tar, or read it as "
            "a stream"
        )
    return sorted(found)


def count_beside(patterns: Sequence[str], census: Census) -> None:
    """Count the files that lie in folders of shards, or one folder further down, and are no shards."""
    for folder in {Path(pattern) for pattern in patterns if Path(pattern).is_dir()}:
        shards = set(folder.glob("*.tar"))
        for path in sorted(path for place in ("*", "*/*") for path in folder.glob(place)):
            if path not in shards and not path.is_dir():
                name = path.relative_to(folder).as_posix()
                census.add(Role.HIDDEN if is_hidden(name) else Role.OTHER, name)


def shard_urls(pattern: str) -> list[str]:
    """The paths, or the URLs, that one pattern stands for, as of :func:`find_shards`."""
    if "://" not in pattern:
        return [str(path) for path in find_shards([pattern], compressed=True)]
    return expand_braces(pattern)


def short_names(paths: Sequence[str]) -> list[str]:
    """What paths or URLs end in, where no two end alike; else all of each."""
    last = [path.rpartition("/")[2] for path in paths]
    return last if len(set(last)) == len(set(paths)) else list(paths)


def expand_braces(pattern: str) -> list[str]:
    """``a-{08..11}.tar`` -> a-08.tar, a-09.tar, a-10.tar, a-11.tar; several braces multiply."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    if not numbers:
        raise ValueError(f"shards {pattern!r}: {{{first}..{last}}} counts down; write the smaller number first")
    heads = [f"{pattern[: match.start()]}{number:0{len(first)}d}" for number in numbers]
    return [head + tail for head in heads for tail in expand_braces(pattern[match.end() :])]
