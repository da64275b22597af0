"""Records in local webdataset shards: tar files whose members of one stem make an item, read at random by an index."""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from .decode import IMAGE_SUFFIXES, Unusable
from .records import USUAL, Captions, Places, Record, caption_lines
from .table import CAPTION_COLUMNS, caption_cell


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
        self.items = [item for number, path in enumerate(self.shards) for item in read_index(path, number)]
        if not self.items:
            raise ValueError(f"no files in {len(self.shards)} shards, the first is {self.shards[0]}")
        self._open: dict[int, int] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.items)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

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
        if self._process != os.getpid():  # a forked worker opens its own files
            self._open, self._process = {}, os.getpid()
        if item.shard not in self._open:
            self._open[item.shard] = os.open(self.shards[item.shard], os.O_RDONLY)
        offset, length = item.files[ending]
        data = os.pread(self._open[item.shard], length, offset)
        if len(data) < length:
            raise Unusable(f".{ending} ends after {len(data)} of {length} bytes: the shard is cut off")
        return data


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
    """The ending of the file that a field is in, as :func:`split_name` gives it, and the key of one in ``.json``."""
    if place.startswith("json:"):
        return "json", place.removeprefix("json:")
    return place.lstrip(".").lower(), None


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


def read_index(path: Path, shard: int) -> list[Member]:
    """The items of one shard by its headers. What is wrong with it is an item of its own, with the reason."""
    items: dict[str, Member] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in members(archive):
                if member.isdir():
                    continue
                stem, ending = split_name(member.name)
                item = items.setdefault(stem, Member(shard, stem))
                fault = member_fault(member)
                if fault is None:
                    item.files[ending] = (member.offset_data, member.size)
                else:
                    item.fault = fault
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        items["(damaged)"] = Member(shard, "(damaged)", fault=f"the shard cannot be read on from here: {error}")
    return list(items.values())


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members one by one, not kept by the archive: a shard may hold a million."""
    while (member := archive.next()) is not None:
        yield member
        archive.members.clear()  # type: ignore[attr-defined]


def member_fault(member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member by its header, or None."""
    if not member.isreg():
        return "is a link or a device in the shard, not a file"
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return f"its name {member.name!r} climbs out of the shard"
    return None


def split_name(name: str) -> tuple[str, str]:
    """(path up to the first dot of the file's name, what follows it in lower case)."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()
