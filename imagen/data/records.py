"""Where pictures and captions lie: records by number, not yet decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .census import Census
from .decode import Raw, Unusable

Captions = tuple[str, ...]
NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Places:
    """Where an item's parts are: columns of a table or dataset; in shards endings of files, and keys of ``.json``.

    Attributes:
        image, caption: None takes the usual ones (in shards, ``image`` is not asked).
        fields: by name, whatever else an item has; in shards ``json:KEY`` is a key of the ``.json`` file.
        ending: of files with captions, in shards; None takes the usual ones.
        rules: by which the files of a shard are told apart (:class:`imagen.data.tar.ShardRecords`), 1 or 2.
    """

    image: str | None = None
    caption: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    ending: str | None = None
    rules: int = 2

    def free(self, usual: Sequence[str]) -> list[str]:
        """The usual places of a caption that are not a field's: a number in a column `label` is none."""
        return [place for place in usual if place not in self.fields.values()]


USUAL = Places()


@dataclass(frozen=True)
class Record:
    """One item as it is stored.

    Attributes:
        name: of the image file, whose ending is compared with its content.
        image: a file, its bytes, or a decoded picture.
        captions: all that the item has, of which training draws one; empty without any.
        fields: what else it has, by name and as it is stored; what that means is for :mod:`imagen.data.fields` to say.
        root: folder that paths in texts are relative to; None: a text is no path.
        looked: where captions were looked for, told where there are none.
    """

    name: str
    image: Raw
    captions: Captions = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    root: Path | None = None
    looked: str = field(default="", compare=False)


Item = Record | Unusable


def tried(make: Callable[[], Record]) -> Item:
    """The record that is made, or why there is none."""
    try:
        return make()
    except Unusable as error:
        return error


class Records(Protocol):
    """Items by number in [0, len). Reading one that is damaged raises :class:`Unusable` with the reason."""

    def __len__(self) -> int: ...

    def key(self, number: int) -> str:
        """The item's name in logs, unique; never raises."""

    def captions(self, number: int) -> Captions:
        """Its captions, without reading the picture."""

    def record(self, number: int) -> Record:
        """All of it."""

    def census(self) -> Census:
        """What every file, or row, that is there is to this source."""


def caption_lines(data: bytes, name: str) -> Captions:
    """Lines of a caption file, each a caption; one empty caption where the file has no text.

    Raises:
        Unusable: not UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(f"{name} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    lines = (" ".join(line.split()) for line in text.splitlines())
    return tuple(line for line in lines if line) or ("",)
