"""Where pictures and captions lie: records by number, not yet decoded; and the first kind of them, a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from .decode import IMAGE_SUFFIXES, Raw, Unusable

Captions = tuple[str, ...]


@dataclass(frozen=True)
class Fields:
    """What holds an item's parts: columns of a table or dataset; in shards endings of files, and a key of ``.json``.

    Attributes:
        image, caption: None takes the usual ones (in shards, ``image`` is not asked).
        conditioning: the paired pictures; None: there are none.
        embedding: the text's encoding; None: captions are encoded when they are used.
    """

    image: str | None = None
    caption: str | None = None
    conditioning: str | None = None
    embedding: str | None = None


USUAL = Fields()


@dataclass(frozen=True)
class Record:
    """One item as it is stored.

    Attributes:
        name: of the image file, whose ending is compared with its content.
        image: a file, its bytes, or a decoded picture.
        captions: all that the item has, of which training draws one; empty without any.
        conditioning: the paired input of an image-to-image stage; None without.
        embedding: the text's encoding, see :func:`imagen.data.embedding.read_embedding`; None without.
    """

    name: str
    image: Raw
    captions: Captions = ()
    conditioning: Raw | None = None
    embedding: Any = None


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
        captions: ``"file"``: each line of the ``.txt`` file beside a picture is a caption; ``"class"``: the name of the
            folder that the picture lies in, its underscores read as spaces.
        conditioning: another folder with the paired pictures, at the same paths (their endings may differ).
        embedding: ending of the file beside a picture that holds its text's encoding, ``npy`` for example.

    Raises:
        ValueError: no such folder, or no pictures in it.
    """

    def __init__(
        self,
        root: str | Path,
        captions: Literal["file", "class"] = "file",
        conditioning: str | Path | None = None,
        embedding: str | None = None,
    ) -> None:
        self.root, self.kind = Path(root), captions
        self.embedding = None if embedding is None else f".{embedding.lstrip('.')}"
        self.paths = _find_images(self.root, self.embedding)
        self.pairs: dict[str, Path] | None = None
        if conditioning is not None:
            pairs = _find_images(Path(conditioning))
            self.pairs = {path.relative_to(conditioning).with_suffix("").as_posix(): path for path in pairs}

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, number: int) -> str:
        """The picture's path inside the folder."""
        return self.paths[number].relative_to(self.root).as_posix()

    def captions(self, number: int) -> Captions:
        """Lines of the caption file, or the class name; empty where there is no file."""
        path = self.paths[number]
        if self.kind == "class":
            return (path.parent.name.replace("_", " "),)
        try:
            return caption_lines(path.with_suffix(".txt").read_bytes(), f"caption {path.with_suffix('.txt').name}")
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise Unusable(f"caption cannot be read: {error.strerror}") from error

    def record(self, number: int) -> Record:
        """The picture's path, its captions, its pair and its text's encoding."""
        path, pair = self.paths[number], None
        if self.pairs is not None:
            pair = self.pairs.get(path.relative_to(self.root).with_suffix("").as_posix())
            if pair is None:
                raise Unusable("has no picture of its name in the conditioning folder")
        embedding = None if self.embedding is None else path.with_suffix(self.embedding)
        return Record(path.name, path, self.captions(number), pair, embedding)


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


def _find_images(root: Path, embedding: str | None = None) -> list[Path]:
    """Sorted; files with the ending of embeddings are none, though arrays may be pictures, too."""
    if not root.is_dir():
        raise ValueError(f"there is no folder {str(root)!r}; expected one with pictures")
    paths = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not (embedding and path.name.endswith(embedding))
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    ]
    if not paths:
        raise ValueError(f"no pictures in {str(root)!r}; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())
