"""What PICTURES means on a command line: a set of pictures, with their captions where there are some.

==========================  ========================================================================================
``photos/``                 pictures in a folder, each with its caption in a ``.txt`` beside it
``photos.tar``, ``*.tar``   webdataset shards; also a folder of them, or a URL
``results/samples/``        what :mod:`imagen.evaluation.sampling` has made there
``captions.jsonl``          a table (``.csv``, ``.tsv``, ``.parquet``) with columns of pictures and captions
``my.yaml``                 the section ``data`` of a training's configuration; ``my.yaml:500``: its first 500
``shapes:heldout:2000``     rendered pictures of the prompts of a suite
==========================  ========================================================================================

They are read as training reads them (:mod:`imagen.data`): upright, in sRGB, bad ones passed over, and told.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagen.checks import check_int
from imagen.data import ShapesDataset
from imagen.data.config import DataConfig
from imagen.data.decode import Picture, Unusable, decode, stored, to_pixels
from imagen.data.pictures import PictureDataset, StreamDataset
from imagen.data.records import Record
from imagen.data.sources import Note
from imagen.data.table import TABLES
from imagen.errors import one_line
from imagen.evaluation.alignment import truth_pictures
from imagen.evaluation.datasets import CONFIGS, data_section, data_source
from imagen.evaluation.prompts import counted_name, named_suite
from imagen.evaluation.sampling import MANIFEST, finished

T = TypeVar("T")
Array = NDArray[np.float64]
Source = PictureDataset | StreamDataset
Read = Callable[[Source, str, Record, int], T]
"""(source, key, record, number) -> what is shown of the record. Raises :class:`imagen.data.decode.Unusable`."""
SUITES = "shapes:"


class Shown(NamedTuple, Generic[T]):
    """One of a set.

    Attributes:
        key: names it in its set; of a folder its path in it.
        picture: of a :class:`PictureSet` of pictures PIL's, in mode RGB.
        caption: the first one; None where there is none.
    """

    key: str
    picture: T
    caption: str | None


@dataclass
class PictureSet(Generic[T]):
    """Pictures that are read as they are asked for, as often as they are iterated over, in the same order.

    Attributes:
        name: as it was given.
        count: how many there are, unusable ones among them; None where that is not known before they are read.
        read: makes an iterator over all of them, and of those that cannot be used why.
        skipped: the latter, of the last iteration; ``told()`` says it in a line.
    """

    name: str
    count: int | None
    read: Callable[[], Iterator[Shown[T] | Note]]
    num: int | None = None
    skipped: list[Note] = field(default_factory=list)

    def __iter__(self) -> Iterator[Shown[T]]:
        """The usable ones, the first ``num`` of them. Raises: ValueError where there are none at all."""
        self.skipped.clear()
        found = 0
        for one in self.read():
            if isinstance(one, Note):
                self.skipped.append(one)
                continue
            found += 1
            yield one
            if found == self.num:
                break
        if not found:
            why = f": {self.skipped[0].key} {self.skipped[0].reason}" if self.skipped else ""
            raise ValueError(f"none of the pictures of {self.name!r} can be used{why}")

    def batches(self, size: int) -> Iterator[list[Shown[T]]]:
        """Lists of ``size``, the last one of what is left."""
        each = iter(self)
        while batch := list(islice(each, size)):
            yield batch

    def told(self) -> str:
        """What was passed over, and the first reasons; empty where nothing was."""
        if not self.skipped:
            return ""
        first: dict[str, str] = {}
        for note in self.skipped:
            first.setdefault(note.reason, note.key)
        reasons = "; ".join(f"{key} {reason}" for reason, key in list(first.items())[:3])
        more = "; ..." if len(first) > 3 else ""
        return f"{self.name}: {len(self.skipped)} pictures passed over ({reasons}{more})"


def open_pictures(name: str, size: int | None = None, num: int | None = None) -> PictureSet[Image.Image]:
    """The pictures that ``name`` means, RGB.

    Args:
        size: side in pixels that they are brought to: the largest square in their middle, reduced by means over areas
            (as ``data.resize`` of a configuration says, else). Smaller ones are passed over, for they would be blurred;
            ``data.min_size`` of a configuration lets them in. None: as they are stored.
        num: the first ones alone.

    Raises:
        ValueError: nothing there, of no such kind, or pictures that are drawn and no size to draw them in.
    """
    read: Read[Image.Image] = _as_stored if size is None else _resized
    if name.startswith(SUITES):
        return _suite(name, size, num)
    data, limit = _data_of(name)
    num = _fewer(limit, num)
    if data.kind == "shapes":
        return _drawn(name, data, size, num)
    return _stored(name, data, size, num, read)


def open_classes(name: str, num: int | None = None) -> PictureSet[Image.Image]:
    """The pictures that ``name`` means as they are stored, RGB, each with its class for a caption: of a folder without
    shards the folder that a picture lies in, else what :func:`open_pictures` takes for the caption. Those without one
    are passed over.

    Raises:
        ValueError: as :func:`open_pictures`.
    """
    if name.startswith(SUITES):
        raise ValueError(f"pictures {name!r} have whole captions and no classes; leave --data out for the shapes world")
    data, limit = _data_of(name)
    if data == DataConfig("folder", name):
        data = DataConfig("folder", name, captions="class")
    found = _stored(name, data, None, _fewer(limit, num), _as_stored)
    read = found.read

    def labelled() -> Iterator[Shown[Image.Image] | Note]:
        for one in read():
            yield Note(one.key, "skipped", "has no class") if isinstance(one, Shown) and one.caption is None else one

    found.read = labelled
    return found


def open_arrays(name: str, num: int | None = None) -> PictureSet[Array]:
    """The stored pictures that ``name`` means as arrays (C, H, W) of the numbers that are stored, in their own unit.

    ``.npy`` files hold any number of channels, (H, W) or (H, W, C), in any unit, with NaN where a value is missing;
    other files 0 to 255, or 0 to 65535 where they have 16 bits, in three channels.

    Raises:
        ValueError: as :func:`open_pictures`.
    """
    data, limit = (None, None) if name.startswith(SUITES) else _data_of(name)
    if data is None or data.kind == "shapes":
        raise ValueError(f"pictures {name!r} are drawn, not stored: save them first, as .npy for example")
    return _stored(name, data, None, _fewer(limit, num), _numbers)


def _fewer(limit: int | None, num: int | None) -> int | None:
    """How many are meant by a name that says so itself, and ``--num``; None: all."""
    given = [one for one in (limit, num) if one is not None]
    return min(given, default=None)


def _data_of(name: str) -> tuple[DataConfig, int | None]:
    """The section of a configuration that says the same as a name, and how many are meant; None: all."""
    file, num = counted_name(name)
    path = Path(file)
    if path.suffix.lower() in CONFIGS and path.is_file():
        return data_section(path), num
    path = Path(name)
    if "://" in name:
        return DataConfig("shards", name, streaming=True), None
    if path.is_dir():
        if (path / MANIFEST).is_file():
            finished(path)
        kind = "shards" if (path / MANIFEST).is_file() or any(path.glob("*.tar")) else "folder"
        return DataConfig("shards" if kind == "shards" else "folder", name), None
    if path.suffix.lower() in TABLES and path.is_file():
        return DataConfig("table", name), None
    if path.suffix.lower() == ".tar" or any(letter in name for letter in "*?["):
        return DataConfig("shards", name), None
    raise ValueError(
        f"pictures {name!r} are not there; expected a folder, tar shards, a table, a YAML file with a section data, or "
        f"{SUITES}heldout:2000"
    )


def _check_drawn(name: str, size: int | None) -> int:
    if size is None:
        raise ValueError(f"pictures {name!r} are drawn, at any size: say at which, --size 256 for example")
    return check_int("size", size, 1)


def _suite(name: str, size: int | None, num: int | None) -> PictureSet[Image.Image]:
    side, prompts = _check_drawn(name, size), named_suite(name.removeprefix(SUITES))
    if prompts is None:
        raise ValueError(f"pictures {name!r}: expected {SUITES}heldout:NUM, {SUITES}train:NUM or {SUITES}tune:NUM")

    def read() -> Iterator[Shown[Image.Image]]:
        for prompt in prompts:
            yield Shown(f"{name}/{prompt.seed}", truth_pictures([prompt], side)[0], prompt.text)

    return PictureSet(name, len(prompts) if num is None else min(num, len(prompts)), read, num)


def _drawn(name: str, data: DataConfig, size: int | None, num: int | None) -> PictureSet[Image.Image]:
    source = data_source(data, _check_drawn(name, size))
    assert isinstance(source, ShapesDataset)
    if num is None:
        raise ValueError(f"pictures {name!r}: the shapes world has no end; write {name}:2000, for example")

    def read() -> Iterator[Shown[Image.Image]]:
        for index in count():
            sample = source[index]
            yield Shown(sample.key, _rgb(sample.image.permute(1, 2, 0).numpy()), sample.caption)

    return PictureSet(name, num, read, num)


def _stored(name: str, data: DataConfig, size: int | None, num: int | None, show: Read[T]) -> PictureSet[T]:
    """The set of what ``show`` makes of every record."""
    source = data_source(data, None if size is None else check_int("size", size, 1))
    assert not isinstance(source, ShapesDataset)

    def read() -> Iterator[Shown[T] | Note]:
        for number, (key, item) in enumerate(_items(source)):
            try:
                if isinstance(item, Unusable):
                    raise item
                picture = show(source, key, item, number)
            except Unusable as error:
                yield Note(key, "skipped", str(error))
            else:
                yield Shown(key, picture, source.prepare.phrase(item.captions[0]) if item.captions else None)

    length = source.length
    most = None if num is None else check_int("num", num, 1)
    return PictureSet(name, length if most is None or length is None else min(most, length), read, most)


def _items(source: Source) -> Iterator[tuple[str, Any]]:
    """Key and record of every item, or why there is none, in the stored order."""
    if isinstance(source, PictureDataset):
        return map(source.item, range(len(source)))
    return ((key, item) for key, item, _ in source.items())


def _as_stored(source: Source, key: str, record: Record, number: int) -> Image.Image:
    return _rgb(decode(record.image, record.name, profiles=source.prepare.profiles).picture)


def _resized(source: Source, key: str, record: Record, number: int) -> Image.Image:
    sample, notes = source.examined(key, record, number)
    if sample is None:
        raise Unusable(notes[-1].reason)
    return _rgb(sample.image.permute(1, 2, 0).numpy())


def _rgb(picture: Picture) -> Image.Image:
    """A picture of three channels, PIL's or of pixels."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    pixels = picture if picture.dtype == np.uint8 else np.rint((picture + 1) * 127.5).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _numbers(source: Source, key: str, record: Record, number: int) -> Array:
    image = record.image
    array = image if isinstance(image, np.ndarray) else _of_npy(image)
    if array is None:
        pixels = to_pixels(decode(image, record.name, profiles=source.prepare.profiles).picture)
        array = pixels if pixels.dtype == np.uint8 else (pixels.astype(np.float64) + 1) * 32767.5
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "fiub":
        raise Unusable(f"an array of {array.dtype} and shape {array.shape}; expected numbers, (H, W) or (H, W, C)")
    planes = array[..., None] if array.ndim == 2 else array
    return np.ascontiguousarray(np.moveaxis(planes, -1, 0), np.float64)


def _of_npy(image: Any) -> NDArray[Any] | None:
    """What a ``.npy`` file, or its bytes, hold; None: it is another one."""
    data = stored(image) if isinstance(image, Path) else image
    if not isinstance(data, bytes) or not data.startswith(b"\x93NUMPY"):
        return None
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Unusable(f"is no whole .npy file: {one_line(error)}") from error
    return array
