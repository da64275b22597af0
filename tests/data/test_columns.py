"""Tables: which columns are meant, what their cells may hold, and which row a word of blame is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen.data.decode import Unusable
from imagen.data.fields import ClassName
from imagen.data.records import Places
from imagen.data.table import Columns, TableRecords, caption_cell, pick_column

IMAGES = ["file_name", "image", "path", "filename", "image_path"]
CAPTIONS = ["caption", "text", "captions", "label"]


def columns(names: list[str], places: Places | None = None, **options: Any) -> Columns:
    return Columns(names, places or Places(), "column of 't'", Path("/table"), **options)


@pytest.mark.parametrize("usual", [IMAGES, CAPTIONS])
def test_the_first_usual_column_is_taken_whatever_the_table_s_order(usual: list[str]) -> None:
    for first in range(len(usual)):
        there = [*usual[first:][::-1], "other"]
        found = columns([*there, "image"]) if usual is CAPTIONS else columns(there)
        assert (found.caption if usual is CAPTIONS else found.image) == usual[first]
    assert columns(["image"]).caption is None
    with pytest.raises(
        ValueError,
        match=r"no image column of 't' \(looked for file_name, image, path, .*are a, text; data.image_column",
    ):
        columns(["a", "text"])


def test_columns_that_are_asked_for_go_before_the_usual_ones_and_must_be_there() -> None:
    names = ["image", "caption", "where", "what", "depth", "hole"]
    found = columns(names, Places("where", "what", {"mask": "hole", "label": "depth"}))
    assert (found.image, found.caption, found.fields) == ("where", "what", {"mask": "hole", "label": "depth"})
    for places, told in (
        (Places(image="a"), "image"),
        (Places(caption="a"), "caption"),
        (Places(fields={"mask": "hole", "edge": "a"}), "edge"),
        (Places(caption=""), "caption"),
    ):
        with pytest.raises(ValueError, match=rf"there is no {told} column of 't' '.?'; the columns are image, caption"):
            columns(names, places)
    assert pick_column(["a"], None, ["b"], "thing") is None
    with pytest.raises(ValueError, match="there is no thing"):
        pick_column(["a"], None, ["b"], "thing", needed=True)


def test_a_field_s_column_is_no_caption() -> None:
    names = ["image", "caption", "text", "label"]
    assert columns(names, Places(fields={"a": "caption", "b": "text"})).caption == "label"
    assert columns(names, Places(fields={"a": "caption"}, caption="caption")).caption == "caption", "asked for"


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        (None, ()),
        ([], ()),
        ((), ()),
        ("", ("",)),
        (" a\t cat \n", ("a cat",)),
        (["one", " two  words"], ("one", "two words")),
        (("one",), ("one",)),
        ("\ud7ff \ue000 😀", ("\ud7ff \ue000 😀",)),  # beside the halves of emoji
    ],
)
def test_captions_of_a_cell_are_one_line_each(cell: Any, captions: tuple[str, ...]) -> None:
    assert caption_cell(cell) == captions


def test_half_an_emoji_is_no_text_wherever_it_stands() -> None:
    for half in map(chr, (0xD800, 0xDBFF, 0xDC00, 0xDFFF)):
        for cell in (half, f"a {half} b", ["one", "two", half]):
            with pytest.raises(Unusable, match="caption is not UTF-8: save the table as UTF-8"):
                caption_cell(cell)


@pytest.mark.parametrize("cell", [7, 1.5, ["one", 7], [None], {"a": "b"}, b"bytes", True])
def test_what_is_no_text_is_no_caption(cell: Any) -> None:
    with pytest.raises(Unusable, match="expected text or a list of texts"):
        caption_cell(cell)


def test_numbers_of_classes_become_names_in_captions_and_in_fields() -> None:
    names = ["image", "label", "kind"]
    places = Places(fields={"kind": "kind"})
    found = columns(names, places, classes={"label": ["red_fox", "owl"], "kind": ["a_b", "c"]})
    picture = np.zeros((2, 2, 3), np.uint8)
    for label, kind, captions, field in (
        (0, 1, ("red fox",), ClassName(1, "c")),
        (1, 0, ("owl",), ClassName(0, "a_b")),
        (-1, -1, (), None),
        (2, 2, (), None),
        (None, None, (), None),
    ):
        record = found.record({"image": picture, "label": label, "kind": kind})
        assert record.captions == captions == found.captions({"label": label})
        assert record.fields == {"kind": field}


@pytest.mark.parametrize(
    ("cell", "image", "name"),
    [
        ("a.png", Path("/table/a.png"), "a.png"),
        ({"bytes": b"1", "path": "a.png"}, b"1", "a.png"),
        ({"bytes": None, "path": "a.png"}, Path("/table/a.png"), "a.png"),
        ({"bytes": b"1", "path": None}, b"1", ""),
        ({"bytes": b"1"}, b"1", ""),
        (b"1", b"1", ""),
    ],
)
def test_a_picture_is_a_path_in_the_table_s_folder_or_its_bytes(cell: Any, image: Any, name: str) -> None:
    record = columns(["image"]).record({"image": cell})
    assert (record.image, record.name, record.captions, record.root) == (image, name, (), Path("/table"))


@pytest.mark.parametrize("cell", [None, "", 7, ["a.png"], {}, {"bytes": None, "path": None}, {"path": ""}])
def test_a_row_without_a_picture_is_told(cell: Any) -> None:
    with pytest.raises(Unusable, match="column 'image' has no picture"):
        columns(["image"]).record({"image": cell})


def picture(root: Path, *names: str) -> None:
    for name in names:
        Image.new("RGB", (2, 2)).save(root / name)


def test_rows_are_told_by_their_number_and_lines_by_theirs(tmp_path: Path) -> None:
    lines = [
        '{"file_name": "b.png", "text": "b"}',
        "",
        "{broken",
        "  ",
        "[1]",
        '{"file_name": "a.png"}',
        '{"text": "c"}',
    ]
    (tmp_path / "t.ndjson").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    records = TableRecords(tmp_path / "t.ndjson")
    assert [records.key(number) for number in range(len(records))] == [
        "b.png (row 0)",
        "row 1",
        "row 2",
        "a.png (row 3)",
        "row 4",
    ]
    assert records.captions(0) == ("b",)
    assert records.captions(3) == ()
    assert records.record(0).image == tmp_path / "b.png"
    for number, told in (
        (1, "line 3 is no JSON: "),
        (2, "line 5 is no JSON object"),
        (4, "'file_name' has no picture"),
    ):
        with pytest.raises(Unusable, match=told):
            records.record(number)
    for number in (1, 2):
        with pytest.raises(Unusable, match="is no JSON"):
            records.captions(number)


def test_of_several_tables_in_a_folder_one_rule_takes_one(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    with pytest.raises(ValueError, match=r"no table in .*; expected one of metadata.jsonl, metadata.csv, metadata.par"):
        TableRecords(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"image": ["p.png"]}), tmp_path / "metadata.parquet")
    assert TableRecords(tmp_path).key(0) == "p.png (row 0)"
    (tmp_path / "metadata.csv").write_text("image\nc.png\n")
    assert TableRecords(tmp_path).key(0) == "c.png (row 0)"
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"image": "j.png"}))
    assert TableRecords(tmp_path).key(0) == "j.png (row 0)"
    (tmp_path / "other.CSV").write_text("image\no.png\n")
    assert TableRecords(tmp_path / "other.CSV").key(0) == "o.png (row 0)", "one that is named"


def test_every_row_of_a_parquet_file_is_its_own(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    cells = {"image": [f"{n}.png" for n in range(7)], "text": [[f"a{n}", f"b{n}"] for n in range(7)]}
    pyarrow.parquet.write_table(pyarrow.table(cells), tmp_path / "t.parquet", row_group_size=3)
    records = TableRecords(tmp_path / "t.parquet")
    assert len(records) == 7
    assert [records.key(n) for n in range(7)] == [f"{path} (row {n})" for n, path in enumerate(cells["image"])]
    assert [records.captions(n) for n in range(7)] == [(f"a{n}", f"b{n}") for n in range(7)]
    held = pyarrow.table({"image": [{"bytes": b"1", "path": path} for path in ("a.png", None)]})
    pyarrow.parquet.write_table(held, tmp_path / "held.parquet")
    assert [TableRecords(tmp_path / "held.parquet").key(n) for n in range(2)] == ["a.png (row 0)", "row 1"]


@pytest.mark.parametrize(("name", "cut"), [("t.csv", ","), ("t.tsv", "\t")])
def test_every_cell_may_stand_in_quotes(tmp_path: Path, name: str, cut: str) -> None:
    lines = [["image", "text"], ["0.png", "a, b"], ["1.png", 'say ""so""']]
    (tmp_path / name).write_text("\n".join(cut.join(f'"{cell}"' for cell in line) for line in lines) + "\n")
    records = TableRecords(tmp_path / name)
    assert [records.key(number) for number in range(2)] == ["0.png (row 0)", "1.png (row 1)"]
    assert [records.captions(number) for number in range(2)] == [("a, b",), ('say "so"',)]


@pytest.mark.parametrize(("name", "cut"), [("t.csv", ","), ("t.tsv", "\t")])
def test_cells_stand_under_their_names(tmp_path: Path, name: str, cut: str) -> None:
    picture(tmp_path, "0.png")
    lines = [["text", "mask", "image"], ["one", "m.png", "0.png"], ["two"], ["three", "", "0.png", "", ""], []]
    (tmp_path / name).write_text("\n".join(cut.join(line) for line in lines))
    records = TableRecords(tmp_path / name, Places(fields={"mask": "mask"}))
    assert len(records) == 3
    first, third = records.record(0), records.record(2)
    assert (first.captions, first.image, first.fields) == (("one",), tmp_path / "0.png", {"mask": "m.png"})
    assert (third.captions, third.fields) == (("three",), {"mask": ""})
    assert records.captions(1) == ("two",)
    with pytest.raises(Unusable, match="has no picture"):
        records.record(1)
