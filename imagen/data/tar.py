"""Records in webdataset shards: tar files whose members of one stem make an item, read at random by an index or, from
wherever they lie, as a stream.
"""

from __future__ import annotations

import gzip
import lzma
import os
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Self

import fsspec

from .census import Census, Role
from .decode import Unusable
from .items import count, item_captions, item_record, split
from .naming import is_hidden
from .records import USUAL, Captions, Item, Places, Record, tried
from .shard_paths import count_beside, find_shards, shard_urls, short_names
from .sources import Note

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
        self.shards, self.patterns, self.places = find_shards(shards), shards, places
        self.names = short_names(list(map(str, self.shards)))
        self.items = [item for number, path in enumerate(self.shards) for item in _read_index(path, number, places)]
        if not self.items:
            raise ValueError(f"no files in {len(self.shards)} shards, the first is {self.shards[0]}")
        self._open: dict[int, int] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.items)

    def key(self, number: int) -> str:
        """shard/path-in-it; of two shards of one name their whole paths."""
        item = self.items[number]
        return f"{self.names[item.shard]}/{item.key}"

    def captions(self, number: int) -> Captions:
        """From ``.txt``, ``.json`` or ``.cls``; empty without any."""
        item = self._item(number)
        return item_captions(item.files, partial(self._read, item), self.places)

    def record(self, number: int) -> Record:
        """The item's picture, captions and fields."""
        item = self._item(number)
        return item_record(item.key, item.files, partial(self._read, item), self.places)

    def census(self) -> Census:
        """What every file in the shards is; their headers are read once more."""
        census = Census()
        for number, path in enumerate(self.shards):
            _read_index(path, number, self.places, census)
        count_beside(self.patterns, census)
        return census

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
        self.names, self.patterns, self.places = short_names(self.urls), shards, places

    def __len__(self) -> int:
        return len(self.urls)

    def name(self, shard: int) -> str:
        """Its path or URL."""
        return self.urls[shard]

    def read(self, shard: int, census: Census | None = None) -> Iterator[tuple[str, Item]]:
        """(shard/path-in-it, record) of every item; damage ends the shard with an item that says so. A connection that
        breaks is opened again and read past what was given. What every file is goes into the census at the end.
        """
        url, given = self.urls[shard], 0
        for attempt in range(TRIES):
            try:
                seen = Census()
                for stem, found in islice(_read_items(url, self.places, seen), given, None):
                    item = tried(partial(self._record, stem, found))
                    given += 1
                    yield f"{self.names[shard]}/{stem}", item
                if census is not None:
                    census.update(seen)
                    count_beside(self.patterns if shard == 0 else (), census)
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


def _read_index(path: Path, shard: int, places: Places, census: Census | None = None) -> list[Member]:
    """The items of one shard by its headers. What is wrong with it is an item of its own, with the reason."""
    groups: dict[str, dict[str, tuple[int, int] | str]] = {}
    damage: list[Member] = []
    census = census or Census()
    try:
        with tarfile.open(path, "r:", tarinfo=_Header) as archive:
            for stem, ending, member in _members(archive, places, census):
                files = groups.setdefault(stem, {})
                files[ending] = _fault(member, ending in files, places, census) or (member.offset_data, member.size)
            _look_for_end(archive, path.name, census)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        damage = [Member(shard, "(damaged)", fault=f"the shard cannot be read on from here: {error}")]
    every = [item for stem, files in groups.items() for item in split(stem, files, places, census)]
    return [
        Member(shard, key, {ending: at for ending, at in found.items() if not isinstance(at, str)}, fault)
        for key, found, fault in every
    ] + damage


def _read_items(url: str, places: Places, census: Census) -> Iterator[tuple[str, dict[str, bytes] | str]]:
    """(stem, its files by ending, or what is wrong with it) of a shard, in order."""
    stem: str | None = None
    files: dict[str, bytes | str] = {}
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as archive:
            for stem, group in groupby(_members(archive, places, census), key=itemgetter(0)):
                files = {}
                for _, ending, member in group:
                    fault = _fault(member, ending in files, places, census)
                    files[ending] = fault or b""  # counted, even if it turns out to be cut off
                    content = None if fault else archive.extractfile(member)
                    files[ending] = fault or (content.read() if content is not None else b"")
                for key, found, fault in split(stem, files, places, census):
                    yield key, fault or {ending: data for ending, data in found.items() if isinstance(data, bytes)}
                stem = None
            _look_for_end(archive, short_names([url])[0], census)
    except DAMAGE as error:
        if stem is not None:
            fault = next((entry for entry in files.values() if isinstance(entry, str)), None)
            count(stem, files, places, census)
            yield stem, fault or "the shard is damaged within it or right behind it"
        yield "(damaged)", f"the shard cannot be read on from here: {error}"


def _members(archive: tarfile.TarFile, places: Places, census: Census) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(path up to the first dot of its name, what follows it in lower case, member) of all but folders, one by one, not
    kept by the archive: a shard may hold a million.
    """
    while (member := archive.next()) is not None:
        if places.rules != 1 and is_hidden(member.name) and not member.isdir():
            census.add(Role.HIDDEN, member.name)
        elif not member.isdir():
            folder, slash, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            yield folder + slash + stem, ending.lower(), member
        archive.members.clear()  # type: ignore[attr-defined]


def _look_for_end(archive: tarfile.TarFile, name: str, census: Census) -> None:
    """Tell of a shard that has been read through, and that ends without the zeros which mark an archive's end."""
    assert archive.fileobj is not None
    if archive.fileobj.tell() <= archive.offset:  # where the next header was looked for
        census.left.append(Note(name, "noted", "ends without an archive's end mark: files may be missing"))


def _fault(member: tarfile.TarInfo, again: bool, places: Places, census: Census) -> str | None:
    """What is wrong with a member, which is there ``again`` or not, or None."""
    if again:  # the other of the two is counted with its item
        census.add(Role.TWICE, member.name)
    twice = f"{member.name!r} is there twice" if again and places.rules != 1 else None
    return member_fault(member) or twice


def member_fault(member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member by its header, or None."""
    if not member.isreg():
        return "is a link or a device in the shard, not a file"
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return f"its name {member.name!r} climbs out of the shard"
    return None
