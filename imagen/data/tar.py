"""Records in webdataset shards: tar files whose members of one stem make an item, read at random by an index or, from
wherever they lie, as a stream.
"""

from __future__ import annotations

import glob
import gzip
import json
import lzma
import os
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, Self

import fsspec

from .decode import IMAGE_SUFFIXES, Unusable
from .records import USUAL, Captions, Item, Places, Record, caption_lines, tried
from .table import CAPTION_COLUMNS, caption_cell

TRIES = 4  # of a connection that breaks, with pauses of 1, 2 and 4 seconds between them
DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


@dataclass
class Member:
    """An item: its shard, and the place of each of its files (offset and length) by ending; or what is wrong."""

    shard: int
    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    fault: str | None = None


class ShardRecords:
    """Items of tar shards. As in webdataset, files of one path up to the first dot belong together.

    The shards are read through once, headers only, for an index; an item is then one or two reads at known places, so
    order, resume and shuffling over all shards are those of any other source. A captions file is ``.txt`` (a caption
    each line), ``.json`` (with one of the usual columns) or ``.cls`` (the class, as text).

    Args:
        shards: paths or globs; a folder stands for its ``*.tar``.
        places: key of the caption in ``.json`` (None takes the first usual one); of fields the endings of their files,
            ``cond.png`` for example, or ``json:KEY``.

    Raises:
        ValueError: nothing found, a compressed shard, or no item in any of them.
    """

    def __init__(self, shards: Sequence[str], places: Places = USUAL) -> None:
        self.shards, self.places = find_shards(shards), places
        self.items = [item for number, path in enumerate(self.shards) for item in _read_index(path, number)]
        if not self.items:
            raise ValueError(f"no files in {len(self.shards)} shards, the first is {self.shards[0]}")
        self._open: dict[int, int] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.items)

    def key(self, number: int) -> str:
        """shard/path-in-it."""
        item = self.items[number]
        return f"{self.shards[item.shard].name}/{item.key}"

    def captions(self, number: int) -> Captions:
        """From ``.txt``, ``.json`` or ``.cls``; empty without any."""
        item = self._item(number)
        return item_captions(item.files, partial(self._read, item), self.places)

    def record(self, number: int) -> Record:
        """The item's picture, captions and fields."""
        item = self._item(number)
        return item_record(item.key, item.files, partial(self._read, item), self.places)

    def _item(self, number: int) -> Member:
        item = self.items[number]
        if item.fault is not None:
            raise Unusable(item.fault)
        return item

    def _read(self, item: Member, ending: str) -> bytes:
        if self._process != os.getpid():  # a worker opens its own files
            self._open, self._process = {}, os.getpid()
        if item.shard not in self._open:
            self._open[item.shard] = os.open(self.shards[item.shard], os.O_RDONLY)
        offset, length = item.files[ending]
        data = os.pread(self._open[item.shard], length, offset)
        if len(data) < length:
            raise Unusable(f".{ending} ends after {len(data)} of {length} bytes: the shard is cut off")
        return data


class ShardStream:
    """Items of tar shards in the order they lie there, on this machine or behind a URL, compressed or not. Files of one
    path up to the first dot, one behind the other, belong together; their endings mean what they mean in
    :class:`ShardRecords`.

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
        """(shard/path-in-it, record) of every item; damage ends the shard with an item that says so. A connection that
        breaks is opened again and read past what was given.
        """
        url, given = self.urls[shard], 0
        for attempt in range(TRIES):
            try:
                for stem, found in islice(_read_items(url), given, None):
                    given += 1
                    yield f"{url.rpartition('/')[2]}/{stem}", tried(partial(self._record, stem, found))
                return
            except (FileNotFoundError, PermissionError):
                raise
            except (ValueError, ImportError) as error:  # a protocol that does not exist or lacks its package
                raise OSError(f"shard {url!r} cannot be opened: {error}") from error
            except Exception as error:  # the libraries behind fsspec raise kinds of their own
                if attempt == TRIES - 1:
                    raise OSError(f"shard {url!r} cannot be read, {TRIES} times: {error}") from error
                time.sleep(2**attempt)

    def _record(self, stem: str, found: dict[str, bytes] | str) -> Record:
        if isinstance(found, str):
            raise Unusable(found)
        return item_record(stem, found, found.__getitem__, self.places)


def item_captions(endings: Collection[str], read: Callable[[str], bytes], places: Places) -> Captions:
    """Captions of an item whose files have these endings, from ``.txt``, ``.json`` or ``.cls``, but where a field is;
    empty without any.

    Raises:
        Unusable: the file with the captions cannot be read.
    """
    taken = [_file_and_key(place) for place in places.fields.values()]
    ending = next((one for one in ("txt", "cls") if one in endings and (one, None) not in taken), None)
    if ending is not None:
        return caption_lines(read(ending), f"caption .{ending}")
    if "json" not in endings:
        return ()
    values = _json_of(read)
    usual = [name for name in CAPTION_COLUMNS if ("json", name) not in taken]
    names = usual if places.caption is None else [places.caption]
    return caption_cell(next((values[name] for name in names if name in values), None))


def _json_of(read: Callable[[str], bytes]) -> dict[str, Any]:
    try:
        values = json.loads(read("json"))
    except ValueError as error:
        raise Unusable(f".json is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise Unusable(".json is no JSON object")
    return values


def item_record(key: str, endings: Collection[str], read: Callable[[str], bytes], places: Places) -> Record:
    """The record of an item whose files have these endings, of which ``places`` says what some are.

    Raises:
        Unusable: no picture, no file or key of a field, or damaged captions.
    """
    files = {name: _file_and_key(place) for name, place in places.fields.items()}
    others = [ending for ending, _ in files.values()]
    pictures = [ending for ending in endings if Path(f"x.{ending}").suffix in IMAGE_SUFFIXES and ending not in others]
    ending = min(pictures, default=None)
    if ending is None:
        raise Unusable(f"has no picture, only {', '.join(sorted(endings))}")
    fields: dict[str, Any] = {}
    for name, (needed, column) in files.items():
        if needed not in endings:
            raise Unusable(f"has no {name} .{needed}")
        fields[name] = read(needed) if column is None else _json_of(read).get(column)
    return Record(f"{key}.{ending}", read(ending), item_captions(endings, read, places), fields)


def _file_and_key(place: str) -> tuple[str, str | None]:
    """The ending of the file that a field is in, in lower case, and the key of one in ``.json``."""
    if place.startswith("json:"):
        return "json", place.removeprefix("json:")
    return place.lstrip(".").lower(), None


class _Header(tarfile.TarInfo):
    """A damaged or cut header raises; tarfile takes one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):  # not the zeros that end an archive
                raise tarfile.ReadError(str(error)) from error
            raise


def _read_index(path: Path, shard: int) -> list[Member]:
    """The items of one shard by its headers. What is wrong with it is an item of its own, with the reason."""
    items: dict[str, Member] = {}
    try:
        with tarfile.open(path, "r:", tarinfo=_Header) as archive:
            for stem, ending, member in _members(archive):
                item = items.setdefault(stem, Member(shard, stem))
                item.files[ending] = (member.offset_data, member.size)
                item.fault = member_fault(member) or item.fault
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        items["(damaged)"] = Member(shard, "(damaged)", fault=f"the shard cannot be read on from here: {error}")
    return list(items.values())


def _read_items(url: str) -> Iterator[tuple[str, dict[str, bytes] | str]]:
    """(stem, its files by ending, or what is wrong with it) of a shard, in order."""
    stem: str | None = None
    fault: str | None = None
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as archive:
            for stem, group in groupby(_members(archive), key=itemgetter(0)):
                files, fault = {}, None
                for _, ending, member in group:
                    fault = fault or member_fault(member)
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is not None:
                        files[ending] = content.read()
                yield stem, fault or files
                stem = None
    except DAMAGE as error:
        if stem is not None:
            yield stem, fault or "the shard is damaged within it or right behind it"
        yield "(damaged)", f"the shard cannot be read on from here: {error}"


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(path up to the first dot of its name, what follows it in lower case, member) of all but folders, one by one, not
    kept by the archive: a shard may hold a million.
    """
    while (member := archive.next()) is not None:
        if not member.isdir():
            folder, slash, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            yield folder + slash + stem, ending.lower(), member
        archive.members.clear()  # type: ignore[attr-defined]


def member_fault(member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member by its header, or None."""
    if not member.isreg():
        return "is a link or a device in the shard, not a file"
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return f"its name {member.name!r} climbs out of the shard"
    return None


def find_shards(patterns: Sequence[str], compressed: bool = False) -> list[Path]:
    """Paths of the shards that paths, globs and folders name, sorted, each once.

    Raises:
        ValueError: one that names nothing, or a compressed tar where they are not ``compressed``.
    """
    found: set[Path] = set()
    for pattern in patterns:
        folder = Path(pattern)
        paths = sorted(folder.glob("*.tar")) if folder.is_dir() else [Path(p) for p in glob.glob(pattern)]
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
