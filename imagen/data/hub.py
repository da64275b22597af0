"""Records of a Hugging Face dataset, by id or in a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .decode import Raw, Unusable
from .records import Captions, Record
from .table import CAPTION_COLUMNS, IMAGE_COLUMNS, bytes_cell, caption_cell, pick_column


class HubRecords:
    """Rows of a map-style dataset; its Arrow files stay on the disk. The key is ``row N``, from 0.

    Class labels become their names. Images are decoded here, not by ``datasets``, so that a damaged one is passed over.

    Args:
        path: id on the Hub, a folder that ``save_to_disk`` wrote, or anything else that ``load_dataset`` takes.
        split: of the dataset.
        image, caption: columns; None takes the first usual one.
        conditioning: column of the paired pictures; None: there are none.

    Raises:
        ValueError: ``datasets`` is not installed, no such dataset or split, or a column that it does not have.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        image: str | None = None,
        caption: str | None = None,
        conditioning: str | None = None,
    ) -> None:
        rows = _load(path, split)
        what = f"column of dataset {path!r}"
        self.image = pick_column(rows.column_names, image, IMAGE_COLUMNS, f"image {what}", needed=True)
        self.caption = pick_column(rows.column_names, caption, CAPTION_COLUMNS, f"caption {what}")
        self.conditioning = None if conditioning is None else pick_column(rows.column_names, conditioning, (), what)
        pictures = [column for column in (self.image, self.conditioning) if column is not None]
        self.rows = _undecoded(rows, pictures)
        self.texts = None if self.caption is None else self.rows.select_columns([self.caption])
        label = None if self.caption is None else rows.features[self.caption]
        self.label_names: list[str] | None = getattr(label, "names", None)

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, number: int) -> str:
        """``row N``."""
        return f"row {number}"

    def captions(self, number: int) -> Captions:
        """The row's captions, or the name of its class; empty without any."""
        if self.texts is None:
            return ()
        cell = self.texts[number][self.caption]
        if self.label_names is not None and cell is not None:
            if cell not in range(len(self.label_names)):
                return ()  # -1: not labelled
            cell = self.label_names[cell].replace("_", " ")
        return caption_cell(cell)

    def record(self, number: int) -> Record:
        """The row's picture, captions and pair."""
        row = self.rows[number]
        pair = None if self.conditioning is None else _raw(row[self.conditioning], self.conditioning)
        return Record(_name(row[self.image]), _raw(row[self.image], self.image), self.captions(number), pair)


def _load(path: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(f"dataset {path!r} needs the datasets package: pip install imagen[datasets]") from None
    folder = Path(path)
    try:
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(path)
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)[split]
        return datasets.load_dataset(path, split=split)
    except Exception as error:  # datasets raises many kinds, and reads scripts of others
        first = " ".join(str(error).split())[:300]
        raise ValueError(f"dataset {path!r} with split {split!r} cannot be loaded: {first}") from error


def _undecoded(rows: Any, columns: list[str]) -> Any:
    import datasets

    for column in columns:
        if isinstance(rows.features[column], datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _name(cell: Any) -> str:
    return str(cell.get("path") or "") if isinstance(cell, dict) else ""


def _raw(cell: Any, column: str) -> Raw:
    if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path"):
        return Path(cell["path"])
    if isinstance(cell, str):
        return Path(cell)
    if cell is None:
        raise Unusable(f"column {column!r} has no picture")
    return bytes_cell(cell, column)
