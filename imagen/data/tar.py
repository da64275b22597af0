"""Records in webdataset shards: tar files whose members of one stem make an item, read at random by an index or, from
wherever they lie, as a stream.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import tarfile
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

import fsspec

from .decode import Unusable
from .naming import is_hidden, is_picture, split_item
from .records import USUAL, Captions, Item, Places, Record, caption_lines, tried
from .shard_paths import find_shards, shard_urls
from .table import CAPTION_COLUMNS, caption_cell

TRIES = 4  # of a connection that breaks, with pauses of 1, 2 and 4 seconds between them
FileT = TypeVar("FileT")
DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


@dataclass
class Member:
    """An item: its shard, and the place of each of its files (offset and length) by ending; or what is wrong."""

    shard: int
    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    fault: str | None = None


class ShardRecords:
    """Items of tar shards. As in webdataset, files of one path up to the first dot belong together, but where there is
    more than one item among them (:func:`imagen.data.naming.split_item`); hidden files are none. With rules 1 there is
    one, of which the first picture is taken.

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
        self.items = [item for number, path in enumerate(self.shards) for item in _read_index(path, number, places)]
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
        self.urls = [url for pattern in shards for url in shard_urls(pattern)]
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
                for stem, found in islice(_read_items(url, self.places), given, None):
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
    files = ("txt", "cls") if places.ending is None else (places.ending.lstrip(".").lower(),)
    ending = next((one for one in files if one in endings and (one, None) not in taken), None)
    if ending is not None:
        return caption_lines(read(ending), f"caption .{ending}")
    if "json" not in endings or places.ending is not None:
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
    pictures = sorted(ending for ending in endings if is_picture(ending, places.rules) and ending not in others)
    if not pictures:
        raise Unusable(f"has no picture, only {', '.join(sorted(endings))}")
    if len(pictures) > 1 and places.rules != 1:
        raise Unusable(f"has {len(pictures)} pictures, {', '.join(pictures)}: keep one, or name the others' fields")
    ending = pictures[0]
    fields: dict[str, Any] = {}
    for name, (needed, column) in files.items():
        if needed not in endings:
            raise Unusable(f"has no {name} .{needed}")
        fields[name] = read(needed) if column is None else _json_of(read).get(column)
    usual = f".txt, .cls or .json with {' or '.join(places.free(CAPTION_COLUMNS))}"
    looked = f"looked for {usual if places.ending is None else places.ending}; data.caption_ending names another"
    return Record(f"{key}.{ending}", read(ending), item_captions(endings, read, places), fields, looked=looked)


def _file_and_key(place: str) -> tuple[str, str | None]:
    """The ending of the file that a field is in, in lower case, and the key of one in ``.json``."""
    if place.startswith("json:"):
        return "json", place.removeprefix("json:")
    return place.lstrip(".").lower(), None


def _named(places: Places) -> list[str]:
    """The endings that a configuration names."""
    captions = [] if places.ending is None else [places.ending.lstrip(".").lower()]
    return [ending for ending, key in map(_file_and_key, places.fields.values()) if key is None] + captions


def _split(stem: str, files: Mapping[str, FileT], places: Places) -> Iterator[tuple[str, dict[str, FileT], str | None]]:
    """(path of an item, its files by ending, what is wrong with one of them) of files of one path up to the first dot.

    What is wrong stands in the place of a file.
    """
    items = {"": dict(files)} if places.rules == 1 else split_item(files, _named(places))
    for more, found in items.items():
        fault = next((entry for entry in found.values() if isinstance(entry, str)), None)
        yield f"{stem}{more}", found, fault


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


def _read_index(path: Path, shard: int, places: Places) -> list[Member]:
    """The items of one shard by its headers. What is wrong with it is an item of its own, with the reason."""
    groups: dict[str, dict[str, tuple[int, int] | str]] = {}
    damage: list[Member] = []
    try:
        with tarfile.open(path, "r:", tarinfo=_Header) as archive:
            for stem, ending, member in _members(archive, places):
                files = groups.setdefault(stem, {})
                files[ending] = _fault(member, ending in files, places) or (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        damage = [Member(shard, "(damaged)", fault=f"the shard cannot be read on from here: {error}")]
    every = [item for stem, files in groups.items() for item in _split(stem, files, places)]
    return [
        Member(shard, key, {ending: at for ending, at in found.items() if not isinstance(at, str)}, fault)
        for key, found, fault in every
    ] + damage


def _read_items(url: str, places: Places) -> Iterator[tuple[str, dict[str, bytes] | str]]:
    """(stem, its files by ending, or what is wrong with it) of a shard, in order."""
    stem: str | None = None
    files: dict[str, bytes | str] = {}
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as archive:
            for stem, group in groupby(_members(archive, places), key=itemgetter(0)):
                files = {}
                for _, ending, member in group:
                    fault = _fault(member, ending in files, places)
                    content = None if fault else archive.extractfile(member)
                    files[ending] = fault or (content.read() if content is not None else b"")
                for key, found, fault in _split(stem, files, places):
                    yield key, fault or {ending: data for ending, data in found.items() if isinstance(data, bytes)}
                stem = None
    except DAMAGE as error:
        if stem is not None:
            fault = next((entry for entry in files.values() if isinstance(entry, str)), None)
            yield stem, fault or "the shard is damaged within it or right behind it"
        yield "(damaged)", f"the shard cannot be read on from here: {error}"


def _members(archive: tarfile.TarFile, places: Places) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(path up to the first dot of its name, what follows it in lower case, member) of all but folders, one by one, not
    kept by the archive: a shard may hold a million.
    """
    while (member := archive.next()) is not None:
        if not (member.isdir() or (places.rules != 1 and is_hidden(member.name))):
            folder, slash, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            yield folder + slash + stem, ending.lower(), member
        archive.members.clear()  # type: ignore[attr-defined]


def _fault(member: tarfile.TarInfo, again: bool, places: Places) -> str | None:
    """What is wrong with a member, which is there ``again`` or not, or None."""
    twice = f"{member.name!r} is there twice" if again and places.rules != 1 else None
    return member_fault(member) or twice


def member_fault(member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member by its header, or None."""
    if not member.isreg():
        return "is a link or a device in the shard, not a file"
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return f"its name {member.name!r} climbs out of the shard"
    return None
