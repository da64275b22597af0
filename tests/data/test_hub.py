"""Hugging Face datasets in local folders: which split, which columns, and what is left undecoded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen.data.decode import Unusable
from imagen.data.fields import ClassName
from imagen.data.hub import HubRecords, HubStream
from imagen.data.records import Places, Record

datasets = pytest.importorskip("datasets")


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2), level).save(stream, "PNG")
    return stream.getvalue()


def rows(split: str, **more: Any) -> Any:
    """Three rows; "image" is damaged in the second, "other" in none."""
    offset = 100 if split == "test" else 0
    pictures = [png(offset + n) for n in range(3)]
    cells = {
        "image": [{"bytes": data if n != 1 else b"damaged", "path": None} for n, data in enumerate(pictures)],
        "other": [{"bytes": png(offset + n + 50), "path": f"{n}.png"} for n in range(3)],
        "text": [f"{split} {n}" for n in range(3)],
        "kind": [1, 0, -1],
        "unasked": [0.5] * 3,
    }
    features = {
        "image": datasets.Image(), "other": datasets.Image(), "text": datasets.Value("string"),
        "kind": datasets.ClassLabel(names=["red_fox", "owl"]), "unasked": datasets.Value("float32"),
    }  # fmt: skip
    return datasets.Dataset.from_dict({**cells, **more}, datasets.Features(features))


@pytest.fixture(scope="module", params=["saved", "files"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two splits, as `save_to_disk` writes them, or as files that `load_dataset` finds."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "saved":
        datasets.DatasetDict({split: rows(split) for split in ("train", "test")}).save_to_disk(str(root))
    else:
        for split in ("train", "test"):
            rows(split).to_parquet(str(root / f"{split}.parquet"))
    return str(root)


def stored(path: str, split: str, places: Places, streaming: bool) -> list[Record]:
    if not streaming:
        records = HubRecords(path, split, places)
        assert [records.key(number) for number in range(len(records))] == ["row 0", "row 1", "row 2"]
        made = [records.record(number) for number in range(3)]
        assert [records.captions(number) for number in range(3)] == [record.captions for record in made]
        assert "unasked" not in records.rows.column_names
        return made
    stream = HubStream(path, split, places)
    assert len(stream) == 1
    assert stream.name(0) == f"file 0 of {path}, {split}"
    keys, items = zip(*stream.read(0), strict=True)
    assert keys == ("file 0 row 0", "file 0 row 1", "file 0 row 2")
    return list(items)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_split_and_the_columns_are_those_asked_for(folder: str, split: str, streaming: bool) -> None:
    offset = 100 if split == "test" else 0
    places = Places("other", "text", {"kind": "kind", "pair": "image"})
    made = stored(folder, split, places, streaming)
    assert [record.captions for record in made] == [(f"{split} {n}",) for n in range(3)]
    assert [record.image for record in made] == [png(offset + n + 50) for n in range(3)]
    assert [record.fields["kind"] for record in made] == [ClassName(1, "owl"), ClassName(0, "red_fox"), None]
    pairs = [record.fields["pair"]["bytes"] for record in made]
    assert pairs == [png(offset), b"damaged", png(offset + 2)], "nobody has decoded them"
    usual = stored(folder, split, Places(), streaming)
    assert [record.image for record in usual] == pairs
    assert [record.captions for record in usual] == [(f"{split} {n}",) for n in range(3)]


def test_without_a_column_of_captions_there_are_none(tmp_path: Path) -> None:
    rows("train").select_columns(["image", "unasked"]).save_to_disk(str(tmp_path))
    records = HubRecords(str(tmp_path))
    assert records.captions(0) == records.record(0).captions == ()
    assert records.rows.column_names == ["image"], "others are not read"


def test_it_is_told_where_captions_were_looked_for(tmp_path: Path) -> None:
    given = rows("train").select_columns(["image", "unasked"])
    given.save_to_disk(str(tmp_path / "a"))
    for item in (HubRecords(str(tmp_path / "a")).record(0), next(iter(HubStream(str(tmp_path / "a")).read(0)))[1]):
        assert isinstance(item, Record)
        assert item.looked == (
            "looked for a column caption, text, captions, label; data.caption_column names another, of unasked"
        )
    given.rename_column("unasked", "caption").map(lambda _: {"caption": None}).save_to_disk(str(tmp_path / "b"))
    assert HubRecords(str(tmp_path / "b")).record(0).looked == "the column 'caption' is empty there"


def test_rows_are_spread_over_the_files_of_a_stream(tmp_path: Path) -> None:
    rows("train").save_to_disk(str(tmp_path), num_shards=3)
    stream = HubStream(str(tmp_path))
    assert len(stream) == 3
    assert [key for shard in range(3) for key, _ in stream.read(shard)] == [f"file {n} row 0" for n in range(3)]
    assert [item.captions for n in range(3) for _, item in stream.read(n)] == [(f"train {n}",) for n in range(3)]  # type: ignore[union-attr]


@pytest.mark.parametrize("make", [HubRecords, HubStream])
def test_what_a_dataset_lacks_is_told_in_one_line(folder: str, make: Any) -> None:
    for options, told in (
        ({"split": "validation"}, f"dataset '{folder}' with split 'validation' cannot be loaded: "),
        ({"places": Places(caption="words")}, f"there is no caption column of dataset '{folder}' 'words'; the columns"),
        ({"places": Places(image="words")}, f"there is no image column of dataset '{folder}' 'words'; the columns"),
        ({"places": Places(fields={"mask": "words"})}, f"there is no mask column of dataset '{folder}' 'words'"),
    ):
        with pytest.raises(ValueError, match=r".") as refused:
            make(folder, **options)
        assert str(refused.value).startswith(told)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 500


def test_a_bad_row_of_a_stream_is_an_item_that_says_why(tmp_path: Path) -> None:
    bad = rows("train", other=[{"bytes": png(1), "path": None}, None, {"bytes": png(2), "path": None}])
    bad.save_to_disk(str(tmp_path))
    first, second, third = (item for _, item in HubStream(str(tmp_path), places=Places(image="other")).read(0))
    assert isinstance(second, Unusable)
    assert str(second) == "column 'other' has no picture"
    assert [item.image for item in (first, third) if isinstance(item, Record)] == [png(1), png(2)]


def test_a_split_that_is_not_there_and_a_dataset_without_rows_are_told(tmp_path: Path) -> None:
    both, one, none = (str(tmp_path / name) for name in ("both", "one", "none"))
    datasets.DatasetDict({"train": rows("train"), "test": rows("test")}).save_to_disk(both)
    rows("train").save_to_disk(one)
    datasets.Dataset.from_dict({"image": [], "text": []}).save_to_disk(none)
    for path, split, told in (
        (both, "banana", "'banana' cannot be loaded: its splits are train, test"),
        (one, "banana", "'banana' cannot be loaded: it has no splits"),
        (none, "train", "with split 'train' has no rows"),
    ):
        for read in (HubRecords, HubStream):
            with pytest.raises(ValueError, match=told):
                read(path, split)
    rows("train").select([]).save_to_disk(str(tmp_path / "selected"))
    with pytest.raises(ValueError, match="has no rows"):
        HubRecords(str(tmp_path / "selected"))
    assert len(HubRecords(one)) == 3
