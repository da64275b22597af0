"""What is told where no caption is found: where it was looked for, what there is, and the key that says where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from imagen.data.decode import NothingUsable
from imagen.data.folder import FolderRecords
from imagen.data.pictures import PictureDataset
from imagen.data.prepare import Prepare, Want
from imagen.data.records import Places, Records
from imagen.data.table import TableRecords
from imagen.data.tar import ShardRecords
from tests.data.test_naming import png, shard


def why(records: Records) -> str:
    with pytest.raises(NothingUsable) as told:
        PictureDataset(records, Prepare(Want(4)))[0]
    return str(told.value).partition("has no caption: ")[2]


COLUMNS = "looked for a column caption, text, captions, label; data.caption_column names another, of prompt, seed"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path


def test_a_table_without_a_usual_column(folder: Path) -> None:
    (folder / "t.csv").write_text("file_name,prompt,seed\na.png,a fern,3\n")
    assert why(TableRecords(folder / "t.csv")) == COLUMNS
    (folder / "t.jsonl").write_text(json.dumps({"file_name": "a.png", "prompt": "a fern", "seed": 3}))
    assert why(TableRecords(folder / "t.jsonl")) == COLUMNS
    (folder / "t.csv").write_text("file_name,caption\na.png,\n,x\n")
    assert PictureDataset(TableRecords(folder / "t.csv"), Prepare(Want(4, captions="optional")))[0].caption == ""
    taken = Places(caption=None, fields={"label": "caption", "more": "text"})
    (folder / "t.csv").write_text("file_name,caption,text\na.png,1,2\n")
    told = "looked for a column captions, label; data.caption_column names another, of caption, text"
    assert TableRecords(folder / "t.csv", taken).record(0).looked == told


def test_a_table_s_empty_cells(folder: Path) -> None:
    (folder / "t.jsonl").write_text(json.dumps({"file_name": "a.png", "text": None}))
    assert why(TableRecords(folder / "t.jsonl")) == "the column 'text' is empty there"


def test_a_folder_and_a_shard(folder: Path) -> None:
    assert why(FolderRecords(folder)) == "there is no .txt file beside it"
    assert why(FolderRecords(folder, ending="tags.txt")) == "there is no .tags.txt file beside it"
    path = str(shard(folder, [("a.png", png())]))
    usual = ".txt, .cls or .json with caption or text or captions or label"
    assert why(ShardRecords([path])) == f"looked for {usual}; data.caption_ending names another"
    assert why(ShardRecords([path], Places(ending="tags.txt"))) == (
        "looked for tags.txt; data.caption_ending names another"
    )


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.csv", "file_name;caption\na.png;x", "one column, 'file_name;caption': .* separated by commas"),
        ("t.csv", "file_name\tcaption\na.png\tx", "separated by commas"),
        ("t.tsv", "file_name;caption\na.png;x", "separated by tabs"),
        ("t.tar", "", "is no table: use data.kind shards"),
        ("t.xlsx", "", r"is no table: expected \.jsonl, \.csv, \.tsv or \.parquet"),
        ("t.csv", "a,b\n1,2", r"looked for file_name, .*the columns are a, b; data\.image_column names another"),
    ],
)
def test_what_is_no_table_of_ours(folder: Path, name: str, text: str, told: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=told):
        TableRecords(folder / name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("t.csv", "use data.kind table"),
        ("t.parquet", "use data.kind table"),
        ("t.tar", "use data.kind shards"),
        ("t.png", "give the folder it is in"),
    ],
)
def test_a_file_in_place_of_a_folder(folder: Path, name: str, told: str) -> None:
    (folder / name).touch()
    with pytest.raises(ValueError, match=f"is a file, no folder: {told}"):
        FolderRecords(folder / name)


def test_a_folder_with_a_table_of_another_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one of metadata.jsonl, metadata.csv, metadata.parquet$"):
        TableRecords(folder)
    for name in ("list.CSV", "b.tsv"):
        (folder / name).write_text("file_name,text\na.png,a\n")
    with pytest.raises(ValueError, match=r"metadata.parquet; there is b.tsv, list.CSV: give its path$"):
        TableRecords(folder)
