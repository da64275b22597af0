"""Where pictures and captions lie: records by number, not yet decoded; and the first kind of them, a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from .decode import IMAGE_SUFFIXES, Raw, Unusable

Captions = tuple[str, ...]
CLASS = "class"  # for a field: the name of the folder that a picture lies in
NOTHING: Mapping[str, Any] = {}
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
KINDS = {**dict.fromkeys(TABLES, "table"), ".tar": "shards"}  # of files that are given for a folder


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


class FolderRecords:
    """Image files in a folder and its subfolders, sorted by their path inside the folder, which is also their key.

    Hidden files and folders are passed over.

    Args:
        root: the folder.
        captions: ``"file"``: each line of the file beside a picture is a caption; ``"class"``: the name of the
            folder that the picture lies in, its underscores read as spaces.
        fields: where each is: a path is another folder with a file at each picture's path, whose ending may differ (a
            picture is taken before other files); a text is the ending of a file beside each picture, ``t5.npy`` for
            example; ``"class"`` is the name of the folder that the picture lies in.
        ending: of the files with captions.

    Raises:
        ValueError: no such folder, or no pictures in it.
    """

    def __init__(
        self,
        root: str | Path,
        captions: Literal["file", "class"] = "file",
        fields: Mapping[str, str | Path] = NOTHING,
        ending: str = "txt",
    ) -> None:
        self.root, self.kind, self.ending = Path(root), captions, f".{ending.lstrip('.')}"
        self.beside = {
            name: place if place == CLASS else f".{place.lstrip('.')}"
            for name, place in fields.items()
            if isinstance(place, str)
        }
        self.pairs = {name: _by_stem(place) for name, place in fields.items() if isinstance(place, Path)}
        self.paths = _find_images(self.root, tuple(self.beside.values()))

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, number: int) -> str:
        """The picture's path inside the folder."""
        return self.paths[number].relative_to(self.root).as_posix()

    def captions(self, number: int) -> Captions:
        """Lines of the caption file, or the class name; empty where there is no file."""
        path = self.paths[number]
        if self.kind == "file" and self.ending in self.beside.values():
            return ()  # it holds a field
        if self.kind == "class":
            return (path.parent.name.replace("_", " "),)
        file = path.with_suffix(self.ending)
        try:
            return caption_lines(file.read_bytes(), f"caption {file.name}")
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise Unusable(f"caption cannot be read: {error.strerror}") from error

    def record(self, number: int) -> Record:
        """The picture's path, its captions and its fields."""
        path = self.paths[number]
        fields: dict[str, Any] = {}
        for name, pairs in self.pairs.items():
            fields[name] = pairs.get(path.relative_to(self.root).with_suffix("").as_posix())
            if fields[name] is None:
                raise Unusable(f"has no file of its name in the {name} folder")
        for name, ending in self.beside.items():
            fields[name] = path.parent.name if ending == CLASS else path.with_suffix(ending)
        return Record(
            path.name, path, self.captions(number), fields, looked=f"there is no {self.ending} file beside it"
        )


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


def _find_images(root: Path, others: tuple[str, ...]) -> list[Path]:
    """Sorted; files that end like fields are none, though masks and arrays may be pictures, too."""
    paths = _find_files(root, lambda path: _is_image(path) and not path.name.endswith(others))
    if not paths:
        raise ValueError(f"no pictures in {str(root)!r}; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return paths


def _by_stem(root: Path) -> dict[str, Path]:
    """Files by their paths inside the folder, without ending."""
    paths = sorted(_find_files(root, lambda path: True), key=_is_image)  # of one path, the last is taken
    if not paths:
        raise ValueError(f"no files in {str(root)!r}; expected one for each picture")
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}


def _find_files(root: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """Sorted by their paths inside the folder; hidden ones are passed over."""
    if root.is_file():
        kind = KINDS.get(root.suffix.lower())
        use = f"use data.kind {kind}" if kind else "give the folder it is in"
        raise ValueError(f"{str(root)!r} is a file, no folder: {use}")
    if not root.is_dir():
        raise ValueError(f"there is no folder {str(root)!r}; expected one with pictures")
    paths = [
        path
        for path in root.rglob("*")
        if wanted(path) and not any(part.startswith(".") for part in path.relative_to(root).parts) and path.is_file()
    ]
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES
