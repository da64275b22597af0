"""Records named by a table: metadata.jsonl, CSV, TSV or parquet with a column of image files and one of captions."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from .census import Census, Role
from .decode import Unusable, parse_json
from .fields import ClassName, picture_of
from .naming import is_foreign, is_hidden, is_picture
from .records import NOTHING, USUAL, Captions, Places, Record

IMAGE_COLUMNS = ("file_name", "image", "path", "filename", "image_path")
CAPTION_COLUMNS = ("caption", "text", "captions", "label")
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

Row = Mapping[str, Any]
Rows = Sequence[Row | Unusable]


class Columns:
    """What a row's columns mean.

    Args:
        names: of all columns.
        places: which are meant; where image and caption are None, the first that there is of ``IMAGE_COLUMNS`` and
            ``CAPTION_COLUMNS``. Fields are given as they stand there.
        what: names the table in errors.
        root: folder that paths in cells are relative to.
        classes: by column, the names of classes that it numbers; None for other columns.

    Raises:
        ValueError: there is no such column.
    """

    def __init__(
        self, names: Sequence[str], places: Places, what: str, root: Path, classes: Mapping[str, Any] = NOTHING
    ) -> None:
        self.image: str = pick_column(names, places.image, IMAGE_COLUMNS, f"image {what}", needed=True)
        usual = places.free(CAPTION_COLUMNS)
        self.caption = pick_column(names, places.caption, usual, f"caption {what}")
        self.fields = {name: pick_column(names, place, (), f"{name} {what}") for name, place in places.fields.items()}
        self.root, self.classes = root, classes
        others = ", ".join(name for name in names if name != self.image)
        self.looked = f"the column {self.caption!r} is empty there"
        if self.caption is None:
            self.looked = (
                f"looked for a column {', '.join(usual)}; data.caption_column names another, of {others or 'none'}"
            )

    def path(self, row: Row) -> str:
        """The path of the row's picture as the table has it; empty for a picture without one."""
        cell = row.get(self.image)
        cell = cell.get("path") if isinstance(cell, Mapping) else cell
        return cell if isinstance(cell, str) else ""

    def captions(self, row: Row) -> Captions:
        """The row's captions, or the name of its class; empty without any."""
        cell = None if self.caption is None else self._cell(row, self.caption)
        return caption_cell(cell.name.replace("_", " ") if isinstance(cell, ClassName) else cell)

    def record(self, row: Row) -> Record:
        """The row's picture, captions and fields."""
        image = picture_of(row.get(self.image), self.root, f"column {self.image!r} has no picture")
        fields = {name: self._cell(row, column) for name, column in self.fields.items()}
        return Record(self.path(row), image, self.captions(row), fields, self.root, self.looked)

    def _cell(self, row: Row, column: str) -> Any:
        """The cell; of class labels with its name, and None where a row has no label, which is -1."""
        cell, names = row.get(column), self.classes.get(column)
        if names is None or cell is None:
            return cell
        return ClassName(cell, names[cell]) if cell in range(len(names)) else None


class RowRecords:
    """One row, one item. The key is ``row N``, from 0. A caption cell may be a list: training draws one."""

    def __init__(self, rows: Rows, columns: Columns) -> None:
        self.rows, self.columns = rows, columns

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, number: int) -> str:
        """``row N``."""
        return f"row {number}"

    def captions(self, number: int) -> Captions:
        """The row's captions; empty without any."""
        return self.columns.captions(self._row(number))

    def record(self, number: int) -> Record:
        """The row's picture, captions and fields."""
        return self.columns.record(self._row(number))

    def census(self) -> Census:
        """The rows."""
        census = Census()
        census.add(Role.ROW, "", len(self))
        return census

    def _row(self, number: int) -> Row:
        row = self.rows[number]
        if isinstance(row, Unusable):
            raise row
        return row


class TableRecords(RowRecords):
    """Rows of a table. The key is ``row N``, behind the image's path as the table has it: ``a.png (row 3)``.

    Image paths, and those in fields, are relative to the table's folder; parquet may hold the image bytes themselves.

    Args:
        path: the table, or a folder with one of ``metadata.jsonl``, ``metadata.csv`` or ``metadata.parquet``.
        places: columns, as :class:`Columns`.

    Raises:
        ValueError: no such table, an unknown kind, no rows, or a column that it does not have.
    """

    def __init__(self, path: str | Path, places: Places = USUAL) -> None:
        table = _find_table(Path(path))
        names, rows = _read(table)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice and places.rules != 1:
            raise ValueError(
                f"{str(table)!r} has {len(names)} columns, of which {twice[0]!r} is there twice: rename one"
            )
        if not len(rows):
            raise ValueError(f"{str(table)!r} has no rows")
        super().__init__(rows, Columns(names, places, f"column of {str(table)!r}", table.parent))

    def key(self, number: int) -> str:
        """``PATH (row N)``, or ``row N`` of a row without a path."""
        path = self._path(number)
        return f"{path} ({super().key(number)})" if path else super().key(number)

    def census(self) -> Census:
        """The rows, and the pictures that none of them names in the folders where theirs lie."""
        census, root = super().census(), os.path.abspath(self.columns.root)
        rows = [row for row in self.rows if not isinstance(row, Unusable)]
        cells = [row.get(column) for row in rows for column in self.columns.fields.values()]
        cells += filter(None, map(self.columns.path, rows))
        named = {Path(os.path.normpath(os.path.join(root, cell))) for cell in cells if isinstance(cell, str)}
        for folder in sorted({path.parent for path in named}):
            for path in sorted(folder.iterdir() if folder.is_dir() else ()):
                picture = is_picture(path.suffix) or is_foreign(path.suffix)
                if picture and not is_hidden(path.name) and path not in named and path.is_file():
                    census.add(Role.UNNAMED, str(path))
        return census

    def _path(self, number: int) -> str:
        row = self.rows[number]
        return "" if isinstance(row, Unusable) else self.columns.path(row)


def pick_column(names: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, needed: bool = False) -> Any:
    """`wanted`, or the first of the usual names that is there.

    Raises:
        ValueError: it is not among `names`, or none is and one is `needed`.
    """
    found = wanted if wanted is not None else next((name for name in usual if name in names), None)
    if (found is None and needed) or (found is not None and found not in names):
        missing = repr(found) if found is not None else f"(looked for {', '.join(usual)})"
        key = f"; data.{what.split()[0]}_column names another" if usual else ""
        raise ValueError(f"there is no {what} {missing}; the columns are {', '.join(names)}{key}")
    return found


def caption_cell(cell: Any) -> Captions:
    """A caption, or several in a list, each on one line; None and an empty list are none.

    Raises:
        Unusable: anything else, or text that is not UTF-8.
    """
    cells = list(cell) if isinstance(cell, (list, tuple)) else [] if cell is None else [cell]
    if not all(isinstance(text, str) for text in cells):
        raise Unusable(f"caption is {cell!r:.80}; expected text or a list of texts")
    if any("\ud800" <= letter <= "\udfff" for text in cells for letter in text):  # half an emoji, or a foreign byte
        raise Unusable("caption is not UTF-8: save the table as UTF-8, with whole characters")
    return tuple(" ".join(text.split()) for text in cells)


def _find_table(path: Path) -> Path:
    if path.is_dir():
        found = next((path / name for name in METADATA if (path / name).is_file()), None)
        if found is None:
            there = [file.name for file in sorted(path.iterdir()) if file.suffix.lower() in TABLES]
            told = f"; there is {', '.join(there[:3])}: give its path" if there else ""
            raise ValueError(f"no table in {str(path)!r}; expected one of {', '.join(METADATA)}{told}")
        return found
    if not path.is_file():
        raise ValueError(f"there is no table {str(path)!r}")
    return path


def _read(path: Path) -> tuple[list[str], Rows]:
    """Names of the columns, and the rows."""
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson"):
        lines = path.read_bytes().splitlines()  # json passes over a byte order mark by itself
        rows = [_json_row(line, number) for number, line in enumerate(lines) if line.strip()]
        # of all rows: one without a caption, which is allowed, may be the first
        return list(dict.fromkeys(name for row in rows if not isinstance(row, Unusable) for name in row)), rows
    if kind in (".csv", ".tsv"):
        return _read_cells(path, "\t" if kind == ".tsv" else ",")
    if kind == ".parquet":
        parquet = ParquetRows(path)
        return parquet.names, parquet
    use = "use data.kind shards" if kind == ".tar" else "expected .jsonl, .csv, .tsv or .parquet"
    raise ValueError(f"{str(path)!r} is no table: {use}")


def _json_row(line: bytes, number: int) -> Row | Unusable:
    try:
        row = parse_json(line)
    except ValueError as error:  # UnicodeDecodeError is one
        return Unusable(f"line {number + 1} is no JSON: {error}")
    return row if isinstance(row, dict) else Unusable(f"line {number + 1} is no JSON object")


def _read_cells(path: Path, delimiter: str) -> tuple[list[str], Rows]:
    """The first line's cells, and the rows of a CSV or TSV file below it."""
    quoted = delimiter == "," or _quotes_cells(path)
    with _open(path) as stream:
        lines = csv.reader(
            stream, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True
        )
        try:
            names = next(lines, [])
            if not any(names):
                raise ValueError(f"{str(path)!r} has an empty first line; expected the names of the columns there")
            if len(names) == 1 and any(other in names[0] for other in ";|\t"):
                raise ValueError(
                    f"{str(path)!r} has one column, {names[0]!r}: its cells must be separated by "
                    f"{'tabs' if delimiter != ',' else 'commas'}"
                )
            remedy = "quote its caption" if quoted else "take the tab out of its caption"
            return names, list(_cell_rows(lines, names, remedy))
        except csv.Error as error:
            raise ValueError(
                f"{str(path)!r} is no CSV: {error}, line {lines.line_num}; is a quote left open?"
            ) from error


def _cell_rows(lines: Any, names: Sequence[str], remedy: str) -> Iterator[Row | Unusable]:
    """One mapping per line of a ``csv.reader``; cells that a line lacks are None. Raises csv.Error as it does."""
    while True:
        try:
            cells = next(lines, None)
        except csv.Error as error:
            if "expected after" not in str(error):  # an open quote has swallowed the rest of the file
                raise
            yield Unusable(f"line {lines.line_num} has text behind a closing quote: double the quotes inside a cell")
            continue
        if cells is None:
            return
        if any(cells[len(names) :]):  # empty ones, of a delimiter at the end, take nothing from the caption
            yield Unusable(f"line {lines.line_num} has more cells than the header: {remedy}")
        elif cells:
            yield {name: cells[column] if column < len(cells) else None for column, name in enumerate(names)}


def _quotes_cells(path: Path) -> bool:
    """Whether a TSV's quotes enclose cells, as pandas and csv write them; in plain ones they are part of the text.

    Raises:
        ValueError: it cannot be told, for a quoted cell holds what looks like a row of its own.
    """
    with _open(path) as stream:
        lines = csv.reader(stream, delimiter="\t", strict=True)
        try:
            for cells in lines:
                if any("\n" in cell and "\t" in cell for cell in cells):
                    raise ValueError(
                        f"{str(path)!r}: the quoted cell that ends in line {lines.line_num} holds a line break and a "
                        "tab, or a stray quote has swallowed rows: save the table as CSV or parquet"
                    )
        except csv.Error:
            return False
    return True


def _open(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


class ParquetRows(Sequence[Mapping[str, Any]]):
    """Rows of a parquet file, mapped into memory and read one by one."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise ValueError(f"{str(path)!r} needs pyarrow: pip install pyarrow") from None
        try:
            self.table = pyarrow.parquet.read_table(path, memory_map=True)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{str(path)!r} cannot be read as parquet: {error}") from error
        self.names: list[str] = self.table.column_names

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, number: Any) -> Any:
        return self.table.slice(number, 1).to_pylist()[0]
