"""Pictures in a folder, with their captions and fields beside them or in other folders."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from .census import Census, Role
from .decode import Unusable, stored
from .naming import is_foreign, is_hidden, is_picture
from .records import NOTHING, Captions, Record, caption_lines
from .table import TABLES

CLASS = "class"  # for a field: the name of the folder that a picture lies in
KINDS = {**dict.fromkeys(TABLES, "table"), ".tar": "shards"}  # of files that are given for a folder
Inode = tuple[int, int]  # device and number: the same for a folder and a link to it


class FolderRecords:
    """Pictures in a folder and its subfolders, sorted by their path inside the folder, which is also their key.

    Hidden files and folders are passed over, and so are other folders with fields that lie in this one. Links to
    folders are followed, but those back to a folder that they lie in. A picture of a format that is not read is an item
    with a fault, unless one that is read has its name.

    Args:
        root: the folder.
        captions: ``"file"``: each line of the file beside a picture is a caption; ``"class"``: the name of the
            folder that the picture lies in, its underscores read as spaces.
        fields: where each is: a path is another folder with a file at each picture's path, whose ending may differ (a
            picture is taken before other files); a text is the ending of a file beside each picture, ``t5.npy`` for
            example; ``"class"`` is the name of the folder that the picture lies in.
        ending: of the files with captions.
        rules: 1 follows no links, knows the commonest formats, reads pictures in the folders of fields, and takes the
            last of several files of a field.

    Raises:
        ValueError: no such folder, no pictures in it, or one inside that cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        captions: Literal["file", "class"] = "file",
        fields: Mapping[str, str | Path] = NOTHING,
        ending: str = "txt",
        rules: int = 2,
    ) -> None:
        self.root, self.kind, self.ending, self.rules = Path(root), captions, f".{ending.lstrip('.')}", rules
        self.beside = {
            name: place if place == CLASS else f".{place.lstrip('.')}"
            for name, place in fields.items()
            if isinstance(place, str)
        }
        self.folders = {name: place for name, place in fields.items() if isinstance(place, Path)}
        self.pairs = {name: _by_stem(place, rules) for name, place in self.folders.items()}
        self.paths = self._find_pictures()
        if not self.paths:
            raise ValueError(f"no pictures in {str(root)!r}; expected files such as .png, .jpg, .tif, .webp or .npy")

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, number: int) -> str:
        """The picture's path inside the folder."""
        return self.paths[number].relative_to(self.root).as_posix()

    def captions(self, number: int) -> Captions:
        """Lines of the caption file, or the class name; empty where there is no file."""
        path = self.paths[number]
        if self.kind == "class":
            return (self._class(path).replace("_", " "),)
        file = path.with_suffix(self.ending)
        if self.ending in self.beside.values() or not file.exists():  # it holds a field, or there is none
            return ()
        try:
            data = stored(file)
        except Unusable as error:
            raise Unusable(f"caption {error}") from error
        return caption_lines(data, f"caption {self.ending}")

    def record(self, number: int) -> Record:
        """The picture's path, its captions and its fields."""
        path = self.paths[number]
        fields: dict[str, Any] = {name: self._paired(name, path) for name in self.pairs}
        for name, ending in self.beside.items():
            fields[name] = self._class(path) if ending == CLASS else path.with_suffix(ending)
        return Record(
            path.name, path, self.captions(number), fields, looked=f"there is no {self.ending} file beside it"
        )

    def census(self) -> Census:
        """What every file in the folder, and in those of fields, is."""
        census, pictures = Census(), set(self.paths)
        own = {path.with_suffix(self.ending) for path in pictures} if self.kind == "file" else set()
        fields = {path.with_suffix(ending) for path in pictures for ending in self.beside.values() if ending != CLASS}
        for path, hidden in _find_files(self.root, self.rules, self._apart(), hidden=True):
            key = path.relative_to(self.root).as_posix()
            if hidden:
                census.add(Role.HIDDEN, key)
            elif path in pictures:
                census.add(Role.PICTURE, key)
            elif path in fields:
                census.add(Role.FIELD, key)
            elif path.name.endswith(self.ending) and self.kind == "file":
                census.add(Role.CAPTION if path in own else Role.ALONE, key)
            else:
                census.add(Role.CONVERTED if is_foreign(path.suffix) else _of_other(path), key)
        stems = {path.relative_to(self.root).with_suffix("").as_posix() for path in pictures}
        for name, folder in self.folders.items():
            found = {path for stem, paths in self.pairs[name].items() if stem in stems for path in paths}
            for path, hidden in _find_files(folder, self.rules, hidden=True):
                census.add(Role.HIDDEN if hidden else Role.FIELD if path in found else _of_other(path), path.as_posix())
        return census

    def _find_pictures(self) -> list[Path]:
        """Sorted; files that end like fields are none, though masks and arrays may be pictures, too."""
        others = tuple(self.beside.values())
        paths = [
            path
            for path, _ in _find_files(self.root, self.rules, self._apart())
            if not path.name.endswith(others) and (is_picture(path.suffix, self.rules) or is_foreign(path.suffix))
        ]
        read = {path.with_suffix("") for path in paths if is_picture(path.suffix, self.rules)}
        return [path for path in paths if is_picture(path.suffix, self.rules) or self._named(path, read)]

    def _class(self, path: Path) -> str:
        """The name of the folder that a picture lies in, also where that was given as ``.``."""
        return path.parent.name if self.rules == 1 else path.parent.absolute().name

    def _named(self, path: Path, read: Collection[Path]) -> bool:
        """Whether a picture of a format that is not read is told as a fault."""
        return self.rules != 1 and path.with_suffix("") not in read

    def _apart(self) -> set[Inode]:
        """The folders of fields, whose pictures are no items."""
        return set() if self.rules == 1 else {_inode(folder) for folder in self.folders.values()}

    def _paired(self, name: str, path: Path) -> Path:
        found = self.pairs[name].get(path.relative_to(self.root).with_suffix("").as_posix(), ())
        if not found:
            raise Unusable(f"has no file of its name in the {name} folder")
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise Unusable(f"has {len(found)} files of its name in the {name} folder, {names}: keep one")
        return found[0]


def _of_other(path: Path) -> Role:
    """What a file is that belongs to no item."""
    return Role.OTHER if path.exists() else Role.BROKEN


def _by_stem(root: Path, rules: int) -> dict[str, list[Path]]:
    """Files by their paths inside the folder, without ending; of one path its pictures, where some are."""
    found: dict[str, list[Path]] = {}
    for path, _ in _find_files(root, rules):
        found.setdefault(path.relative_to(root).with_suffix("").as_posix(), []).append(path)
    if not found:
        raise ValueError(f"no files in {str(root)!r}; expected one for each picture")
    for stem, paths in found.items():
        taken = [path for path in paths if is_picture(path.suffix, rules)] or paths
        found[stem] = taken[-1:] if rules == 1 else taken
    return found


def _find_files(
    root: Path, rules: int, without: Collection[Inode] = (), hidden: bool = False
) -> list[tuple[Path, bool]]:
    """(file, whether it is hidden), sorted by their paths inside the folder; hidden ones only if asked for.

    Raises:
        ValueError: no such folder, or one inside cannot be read.
    """
    if root.is_file():
        kind = KINDS.get(root.suffix.lower())
        use = f"use data.kind {kind}" if kind else "give the folder it is in"
        raise ValueError(f"{str(root)!r} is a file, no folder: {use}")
    if not root.is_dir():
        raise ValueError(f"there is no folder {str(root)!r}; expected one with pictures")
    found = []
    for path in _walk(root, rules, frozenset({_inode(root)}), without):
        inside = path.relative_to(root).as_posix()
        unseen = is_hidden(inside) if rules != 1 else any(part.startswith(".") for part in inside.split("/"))
        if (hidden or not unseen) and (rules != 1 or path.is_file()):
            found.append((inside, path, unseen))
    return [(path, unseen) for _, path, unseen in sorted(found)]


def _walk(folder: Path, rules: int, above: frozenset[Inode], without: Collection[Inode]) -> Iterator[Path]:
    """All files under a folder, but those in folders that are left out or lie ``above``."""
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        if rules == 1:
            return
        raise ValueError(f"folder {str(folder)!r} cannot be read ({error.strerror}): allow it, or move it") from error
    for path in entries:
        if not path.is_dir():
            yield path
        elif rules != 1 or not path.is_symlink():
            inode = _inode(path)
            if inode not in above and inode not in without:
                yield from _walk(path, rules, above | {inode}, without)


def _inode(folder: Path) -> Inode:
    found = folder.stat()
    return found.st_dev, found.st_ino
