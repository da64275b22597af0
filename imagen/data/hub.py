"""Records of a Hugging Face dataset, by id or in a local folder, at random or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .decode import Unusable
from .fields import ClassName, picture_of
from .records import USUAL, Captions, Places, Record
from .streams import Item
from .table import caption_cell, pick_columns


class Columns:
    """What a row's columns mean. Class labels become their names; pictures are decoded here, not by ``datasets``, so
    that a damaged one is passed over, and columns that nobody asked for are not read.

    Args:
        path: names the dataset in errors.
        names: of its columns; features: their types by name, where they are known.
        places: as :class:`HubRecords`.
    """

    def __init__(self, path: str, names: Sequence[str], features: Mapping[str, Any], places: Places) -> None:
        self.places = pick_columns(names, places, f"column of dataset {path!r}")
        self.image = str(self.places.image)
        chosen = (self.places.image, self.places.caption, *self.places.fields.values())
        self.read = [name for name in dict.fromkeys(chosen) if name is not None]
        self.classes = {name: getattr(features.get(name), "names", None) for name in self.read}

    def captions(self, row: Mapping[str, Any]) -> Captions:
        """The row's captions, or the name of its class; empty without any."""
        if self.places.caption is None:
            return ()
        cell = self._cell(row, self.places.caption)
        return caption_cell(cell.name.replace("_", " ") if isinstance(cell, ClassName) else cell)

    def record(self, row: Mapping[str, Any]) -> Record:
        """The row's picture, captions and fields."""
        cell = row[self.image]
        image = picture_of(cell, Path(), f"column {self.image!r} has no picture")
        name = str(cell.get("path") or "") if isinstance(cell, dict) else ""
        fields = {name: self._cell(row, column) for name, column in self.places.fields.items()}
        return Record(name, image, self.captions(row), fields, Path())

    def _cell(self, row: Mapping[str, Any], column: str) -> Any:
        """The cell; of class labels with its name, and None where a row has no label, which is -1."""
        cell, names = row[column], self.classes[column]
        if names is None or cell is None:
            return cell
        return ClassName(cell, names[cell]) if cell in range(len(names)) else None


class HubRecords:
    """Rows of a map-style dataset; its Arrow files stay on the disk. The key is ``row N``, from 0.

    Args:
        path: id on the Hub, a folder that ``save_to_disk`` wrote, or anything else that ``load_dataset`` takes.
        split: of the dataset.
        places: columns; None takes the first usual one of pictures and captions.

    Raises:
        ValueError: ``datasets`` is not installed, no such dataset or split, or a column that it does not have.
    """

    def __init__(self, path: str, split: str = "train", places: Places = USUAL) -> None:
        rows = _load(path, split)
        self.columns = Columns(path, rows.column_names, rows.features, places)
        self.rows = _undecoded(rows.select_columns(self.columns.read), self.columns.read)
        caption = self.columns.places.caption
        self.texts = None if caption is None else self.rows.select_columns([caption])

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, number: int) -> str:
        """``row N``."""
        return f"row {number}"

    def captions(self, number: int) -> Captions:
        """The row's captions, or the name of its class; empty without any."""
        return () if self.texts is None else self.columns.captions(self.texts[number])

    def record(self, number: int) -> Record:
        """The row's picture, captions and fields."""
        return self.columns.record(self.rows[number])


class HubStream:
    """Rows of a dataset that is read over the network as it is used, file by file. The key is ``file N row M``.

    Args:
        path, split, places: as :class:`HubRecords`.

    Raises:
        ValueError: as :class:`HubRecords`. Reading raises what ``datasets`` does once it has given up trying again.
    """

    def __init__(self, path: str, split: str = "train", places: Places = USUAL) -> None:
        rows = _load(path, split, streaming=True)
        self.path, self.split = path, split
        names = rows.column_names or list(next(iter(rows), {}))
        self.columns = Columns(path, names, rows.features or {}, places)
        if set(names) != set(self.columns.read):  # which costs something for every row
            rows = rows.select_columns(self.columns.read)
        self.rows = _undecoded(rows, self.columns.read) if rows.features else rows.decode(False)

    def __len__(self) -> int:
        return int(self.rows.num_shards)

    def name(self, shard: int) -> str:
        """``file N of PATH, SPLIT``, from 0: kept lengths of files must not be taken for another dataset's."""
        return f"file {shard} of {self.path}, {self.split}"

    def read(self, shard: int) -> Iterator[tuple[str, Item]]:
        """(``file N row M``, record) of every row of a file."""
        for number, row in enumerate(self._rows(shard)):
            yield f"file {shard} row {number}", _or_unusable(self.columns.record, row)

    def captions(self, shard: int) -> Iterator[Captions]:
        """The captions of a file's rows."""
        found = (_or_unusable(self.columns.captions, row) for row in self._rows(shard))
        return (captions for captions in found if not isinstance(captions, Unusable))

    def _rows(self, shard: int) -> Iterator[dict[str, Any]]:
        return iter(self.rows.shard(num_shards=len(self), index=shard))


def _or_unusable(make: Callable[[dict[str, Any]], Any], row: dict[str, Any]) -> Any:
    try:
        return make(row)
    except Unusable as error:
        return error


def _load(path: str, split: str, streaming: bool = False) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(f"dataset {path!r} needs the datasets package: pip install datasets") from None
    folder = Path(path)
    try:
        saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
        if not saved:
            return datasets.load_dataset(path, split=split, streaming=streaming)
        rows: Any = datasets.load_from_disk(path)
        rows = rows[split] if isinstance(rows, dict) else rows
        return rows.to_iterable_dataset(num_shards=max(1, len(rows.cache_files))) if streaming else rows
    except Exception as error:  # datasets raises many kinds, and reads scripts of others
        first = " ".join(str(error).split())[:300]
        raise ValueError(f"dataset {path!r} with split {split!r} cannot be loaded: {first}") from error


def _undecoded(rows: Any, columns: list[str]) -> Any:
    import datasets

    for column in columns:
        if isinstance(rows.features[column], datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows
