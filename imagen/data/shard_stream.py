"""webdataset shards read as a stream: tar files on this machine or behind a URL, compressed or not."""

from __future__ import annotations

import gzip
import lzma
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fsspec

from .decode import Unusable
from .records import USUAL, Captions, Places, Record
from .streams import Item
from .tar import find_shards, item_captions, item_record, member_fault, members, split_name

TRIES = 4  # of a connection that breaks, with pauses of 1, 2 and 4 seconds between them
DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


class ShardStream:
    """Items of tar shards in the order they lie there. Files of one path up to the first dot, one behind the other,
    belong together, as in webdataset; their endings mean what they mean in :class:`imagen.data.tar.ShardRecords`.

    Args:
        shards: paths, globs and folders, or whatever fsspec opens (``https://``, ``s3://``, ``hf://``, ...); in a URL
            ``{000..127}`` stands for a row of numbers.
        places: as there.

    Raises:
        ValueError: nothing found. Reading raises OSError where a shard is not there or its connection keeps breaking.
    """

    def __init__(self, shards: Sequence[str], places: Places = USUAL) -> None:
        self.urls = [url for pattern in shards for url in _urls(pattern)]
        self.places = places

    def __len__(self) -> int:
        return len(self.urls)

    def name(self, shard: int) -> str:
        """Its path or URL."""
        return self.urls[shard]

    def read(self, shard: int) -> Iterator[tuple[str, Item]]:
        """(shard/path-in-it, record) of every item; damage ends the shard with an item that says so."""
        return self._items(shard, self._record)

    def captions(self, shard: int) -> Iterator[Captions]:
        """The captions of the items; those of bad ones are left out."""
        return (item for _, item in self._items(shard, self._captions) if not isinstance(item, Unusable))

    def _record(self, key: str, files: dict[str, bytes]) -> Record:
        return item_record(key, files, files.__getitem__, self.places)

    def _captions(self, _key: str, files: dict[str, bytes]) -> Captions:
        return item_captions(files, files.__getitem__, self.places)

    def _items(self, shard: int, make: Callable[[str, dict[str, bytes]], Any]) -> Iterator[tuple[str, Any]]:
        """What ``make`` makes of each item; a broken connection is opened again and read past what was given."""
        given = 0
        for attempt in range(TRIES):
            try:
                for number, (stem, found) in enumerate(_read_items(self.urls[shard])):
                    if number < given:
                        continue
                    given += 1
                    yield f"{self.urls[shard].rpartition('/')[2]}/{stem}", _made(make, stem, found)
            except (FileNotFoundError, PermissionError):
                raise
            except (ValueError, ImportError) as error:  # a protocol that does not exist or lacks its package
                raise OSError(f"shard {self.urls[shard]!r} cannot be opened: {error}") from error
            except Exception as error:  # the libraries behind fsspec raise kinds of their own
                if attempt == TRIES - 1:
                    raise OSError(f"shard {self.urls[shard]!r} cannot be read, {TRIES} times: {error}") from error
                time.sleep(2**attempt)
            else:
                return


def _made(make: Callable[[str, dict[str, bytes]], Any], stem: str, found: dict[str, bytes] | str) -> Any:
    try:
        if isinstance(found, str):
            raise Unusable(found)
        return make(stem, found)
    except Unusable as error:
        return error


def _read_items(url: str) -> Iterator[tuple[str, dict[str, bytes] | str]]:
    """(stem, its files by ending, or what is wrong with it) of a shard, in order."""
    stem: str | None = None
    files: dict[str, bytes] = {}
    fault: str | None = None
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in members(archive):
                if member.isdir():
                    continue
                name, ending = split_name(member.name)
                if name != stem:
                    if stem is not None:
                        yield stem, fault or files
                    stem, files, fault = name, {}, None
                fault = fault or member_fault(member)
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None:
                    files[ending] = content.read()
    except DAMAGE as error:
        if stem is not None:
            yield stem, fault or "the shard is damaged within it or right behind it"
        yield "(damaged)", f"the shard cannot be read on from here: {error}"
        return
    if stem is not None:
        yield stem, fault or files


def _urls(pattern: str) -> list[str]:
    if "://" not in pattern:
        return [str(path) for path in find_shards([pattern], compressed=True)]
    return expand_braces(pattern)


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
