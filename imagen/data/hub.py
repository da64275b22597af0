"""Records of a Hugging Face dataset, by id or in a local folder, at random or as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .census import Census, Role
from .records import USUAL, Captions, Item, Places, tried
from .table import Columns, RowRecords


class HubRecords(RowRecords):
    """Rows of a map-style dataset; its Arrow files stay on the disk. The key is ``row N``, from 0.

    Class labels become their names; pictures are decoded here, not by ``datasets``, so that a damaged one is passed
    over, and columns that nobody asked for are not read.

    Args:
        path: id on the Hub, a folder that ``save_to_disk`` wrote, or anything else that ``load_dataset`` takes.
        split: of the dataset.
        places: columns; None takes the first usual one of pictures and captions.

    Raises:
        ValueError: ``datasets`` is not installed, no such dataset or split, or a column that it does not have.
    """

    def __init__(self, path: str, split: str = "train", places: Places = USUAL) -> None:
        rows, columns = _open(path, split, places)
        super().__init__(rows, columns)
        self.texts = rows if columns.caption is None else rows.select_columns([columns.caption])

    def captions(self, number: int) -> Captions:
        """The row's captions, or the name of its class, without its picture; empty without any."""
        return self.columns.captions(self.texts[number])


class HubStream:
    """Rows of a dataset that is read over the network as it is used, file by file. The key is ``file N row M``.

    Args:
        path, split, places: as :class:`HubRecords`.

    Raises:
        ValueError: as :class:`HubRecords`. Reading raises what ``datasets`` does once it has given up trying again.
    """

    def __init__(self, path: str, split: str = "train", places: Places = USUAL) -> None:
        self.rows, self.columns = _open(path, split, places, streaming=True)
        self.path, self.split = path, split

    def __len__(self) -> int:
        return int(self.rows.num_shards)

    def name(self, shard: int) -> str:
        """``file N of PATH, SPLIT``, from 0: kept lengths of files must not be taken for another dataset's."""
        return f"file {shard} of {self.path}, {self.split}"

    def read(self, shard: int, census: Census | None = None) -> Iterator[tuple[str, Item]]:
        """(``file N row M``, record) of every row of a file, counted as it comes."""
        for number, row in enumerate(self.rows.shard(num_shards=len(self), index=shard)):
            if census is not None:
                census.add(Role.ROW, "")
            yield f"file {shard} row {number}", tried(partial(self.columns.record, row))


def _open(path: str, split: str, places: Places, streaming: bool = False) -> tuple[Any, Columns]:
    """The dataset with those of its columns that are asked for, pictures not decoded; and what they mean."""
    rows = _load(path, split, streaming)
    import datasets

    names, features = rows.column_names or list(next(iter(rows), {})), rows.features or {}
    if not streaming and not len(rows):
        raise ValueError(f"dataset {path!r} with split {split!r} has no rows")
    classes = {name: getattr(feature, "names", None) for name, feature in features.items()}
    columns = Columns(names, places, f"column of dataset {path!r}", Path(), classes)
    asked = {columns.image, columns.caption, *columns.fields.values()}
    read = [name for name in names if name in asked]
    if read != names:  # which costs something for every row of a stream
        rows = rows.select_columns(read)
    if not features:
        return rows.decode(False), columns
    for name in read:
        if isinstance(features[name], datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows, columns


def _load(path: str, split: str, streaming: bool) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(f"dataset {path!r} needs the datasets package: pip install datasets") from None
    folder = Path(path)
    try:
        if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return datasets.load_dataset(path, split=split, streaming=streaming)
        rows: Any = datasets.load_from_disk(path)
        splits = list(rows) if isinstance(rows, dict) else ["train", str(rows.split)]  # one without splits is any
        if split not in splits:
            raise ValueError(f"its splits are {', '.join(splits)}" if isinstance(rows, dict) else "it has no splits")
        rows = rows[split] if isinstance(rows, dict) else rows
        return rows.to_iterable_dataset(num_shards=max(1, len(rows.cache_files))) if streaming else rows
    except IndexError as error:  # of no files, which a dataset without rows was saved to
        raise ValueError(f"dataset {path!r} with split {split!r} has no rows") from error
    except Exception as error:  # datasets raises many kinds, and reads scripts of others
        first = " ".join(str(error).split())[:300]
        raise ValueError(f"dataset {path!r} with split {split!r} cannot be loaded: {first}") from error
