"""Tables, Hugging Face datasets and tar shards give what the same pictures in a folder give."""

from __future__ import annotations

import csv
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data.decode import Unusable
from imagen.data.folder import FolderRecords
from imagen.data.hub import HubRecords
from imagen.data.pictures import PictureDataset
from imagen.data.prepare import Prepare, Want
from imagen.data.records import Places, Records
from imagen.data.table import TableRecords
from imagen.data.tar import ShardRecords, ShardStream

CAPTIONS = ["a cat, asleep", 'größer "als" ☂', "drei", "four"]


def encoded(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 24, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def make_folder(root: Path) -> Records:
    root.mkdir(exist_ok=True)
    for number, caption in enumerate(CAPTIONS):
        (root / f"{number}.png").write_bytes(encoded(number))
        (root / f"{number}.txt").write_text(caption, encoding="utf-8")
    return FolderRecords(root)


def make_jsonl(root: Path) -> Records:
    make_folder(root)
    lines = [json.dumps({"file_name": f"{n}.png", "text": caption}) for n, caption in enumerate(CAPTIONS)]
    (root / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return TableRecords(root)


def make_csv(root: Path) -> Records:
    make_folder(root)
    with (root / "list.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("where", "what"), *((f"{n}.png", caption) for n, caption in enumerate(CAPTIONS))])
    return TableRecords(root / "list.csv", Places("where", "what"))


def rows(**more: Any) -> dict[str, list[Any]]:
    return {"image": [{"bytes": encoded(n), "path": None} for n in range(4)], "caption": list(CAPTIONS), **more}


def make_parquet(root: Path) -> Records:
    import pyarrow
    import pyarrow.parquet

    root.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(rows()), root / "metadata.parquet", row_group_size=3)
    return TableRecords(root)


def make_hub(root: Path) -> Records:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(rows(), features).save_to_disk(str(root))
    return HubRecords(str(root))


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def make_shards(root: Path) -> Records:
    root.mkdir(exist_ok=True)
    for shard in range(2):
        with tarfile.open(root / f"{shard:03d}.tar", "w") as archive:
            for n in (2 * shard, 2 * shard + 1):
                add(archive, f"sub.dir/{n}.png", encoded(n))
                text = (
                    {"txt": CAPTIONS[n].encode()} if shard else {"json": json.dumps({"caption": CAPTIONS[n]}).encode()}
                )
                for ending, data in text.items():
                    add(archive, f"sub.dir/{n}.{ending}", data)
    return ShardRecords([str(root / "*.tar")])


MAKERS = [make_folder, make_jsonl, make_csv, make_parquet, make_hub, make_shards]


@pytest.mark.parametrize("make", MAKERS)
def test_every_source_gives_the_same_samples(tmp_path: Path, make: Any) -> None:
    prepare = Prepare(Want(16, lowres_size=4), crop=8, square="random", flip=True)
    expected = PictureDataset(make_folder(tmp_path / "folder"), prepare, seed=5)
    found = PictureDataset(make(tmp_path / "other"), prepare, seed=5)
    again = pickle.loads(pickle.dumps(found))  # what a spawned worker gets
    assert len(found) == len({found.records.key(n) for n in range(4)}) == 4
    for index in range(12):
        one, other, third = expected[index], found[index], again[index]
        assert other.caption == third.caption == one.caption == CAPTIONS[index % 4]
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.image, third.image)
        assert one.lowres is not None
        assert other.lowres is not None
        assert torch.equal(one.lowres, other.lowres)
        assert other.notes == ()
    assert list(found.captions()) == [(caption,) for caption in CAPTIONS]


def test_a_table_s_bad_rows_are_told_one_by_one(tmp_path: Path) -> None:
    good = json.dumps({"file_name": "0.png", "captions": ["one", "two"]}).encode()
    lines = [good, b"{broken", b"[1]", b'{"file_name": "caf\xe9"}', b'{"file_name": "9.png"}', b'{"captions": "x"}']
    lines += [b'{"file_name": "0.png", "captions": 7}', b'{"file_name": "0.png"}']
    lines += [b'{"file_name": "0.png", "captions": "half an emoji \\ud83d"}']
    (tmp_path / "0.png").write_bytes(encoded(0))
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines) + b"\n\n")
    dataset = PictureDataset(TableRecords(tmp_path / "t.jsonl"), Prepare(Want(8)))
    assert {dataset[8 * epoch].caption for epoch in range(40)} == {"one", "two"}
    reasons = [dataset.examine(number)[1][0].reason for number in range(1, 9)]
    expected = ["line 2 is no JSON", "line 3 is no JSON object", "line 4 is no JSON", "caption", "column 'file_name'"]
    expected += ["caption is 7", "has no caption", "caption is not UTF-8"]
    assert all(word in reason for word, reason in zip(expected, reasons, strict=True)), reasons


def test_csv_text_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encoded(0))
    (tmp_path / "t.csv").write_bytes(b"image,text\n0.png,caf\xe9\n0.png,fine\n")
    dataset = PictureDataset(TableRecords(tmp_path / "t.csv"), Prepare(Want(8)))
    assert "not UTF-8" in dataset.examine(0)[1][0].reason
    assert dataset[1].caption == "fine"


def read_table(path: Path, content: str) -> tuple[list[Any], list[str]]:
    """(captions of usable rows, reasons of the others) of a table with one picture."""
    (path.parent / "0.png").write_bytes(encoded(0))
    path.write_text(content, encoding="utf-8", newline="")
    dataset = PictureDataset(TableRecords(path), Prepare(Want(8)))
    states = [dataset.examine(number) for number in range(len(dataset))]
    return [s.caption for s, _ in states if s is not None], [notes[0].reason for s, notes in states if s is None]


def test_a_caption_that_a_comma_cuts_is_not_trained_on(tmp_path: Path) -> None:
    lines = ["image,text", "0.png,a cat, asleep", '0.png,"a dog, awake"', "0.png,one,", '0.png,"so" he said', "0.png"]
    captions, reasons = read_table(tmp_path / "t.csv", "\n".join(lines))
    assert captions == ["a dog, awake", "one"]
    assert reasons == [
        "line 2 has more cells than the header: quote its caption",
        "line 5 has text behind a closing quote: double the quotes inside a cell",
        "has no caption: the column 'text' is empty there",
    ]
    with pytest.raises(ValueError, match=r"no image column .*; the columns are a, b; data.image_column names another$"):
        read_table(tmp_path / "t.csv", "a,b\n0.png,a cat, asleep\n")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_quote_in_a_plain_tsv_is_a_character(tmp_path: Path, ending: str) -> None:
    texts = ['"Once upon a time', 'a 5" pipe', '"so" he said', '"whole"', "two\tcells"]
    lines = ["image\ttext", *(f"0.png\t{text}" for text in texts)]
    captions, reasons = read_table(tmp_path / "t.tsv", "\ufeff" + ending.join(lines) + ending)
    assert captions == texts[:-1]
    assert reasons == ["line 6 has more cells than the header: take the tab out of its caption"]


def test_a_tsv_written_with_quotes_is_read_with_them(tmp_path: Path) -> None:
    stream = io.StringIO()
    texts = ['a 5" pipe', "two\tcells", "two\nlines", "plain"]
    csv.writer(stream, delimiter="\t").writerows([("image", "text"), *(("0.png", text) for text in texts)])
    assert read_table(tmp_path / "t.tsv", stream.getvalue()) == ([" ".join(text.split()) for text in texts], [])


def test_a_jsonl_s_columns_are_those_of_all_rows(tmp_path: Path) -> None:
    lines = [{"file_name": "0.png"}, {"file_name": "0.png", "text": "a cat"}]
    content = "\n".join(["{broken", *map(json.dumps, lines)])
    captions, reasons = read_table(tmp_path / "t.jsonl", content)
    assert captions == ["a cat"]
    assert reasons[1:] == ["has no caption: the column 'text' is empty there"]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("t.csv", 'image,text\n0.png,"a cat\n0.png,two\n', {}, "unexpected end of data, line 3; is a quote left open"),
        ("t.tsv", 'image\ttext\n0.png\t"a\n0.png\tb"\n', {}, "ends in line 3 .* a stray quote has swallowed rows"),
        ("t.csv", "a,b\n1,2\n", {}, r"no image column .*looked for file_name.*columns are a, b"),
        ("t.csv", "image,b\n1,2\n", {"caption": "text"}, r"no caption column .* 'text'; the columns are image, b"),
        ("t.csv", "image,text\n", {}, "has no rows"),
        ("t.xls", "", {}, "expected .jsonl, .csv"),
        ("t.parquet", "no", {}, "cannot be read as parquet"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, name: str, content: str, options: dict[str, str], message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        TableRecords(tmp_path / name, Places(**options))
    with pytest.raises(ValueError, match="no table"):
        TableRecords(tmp_path / "nowhere")


def test_class_labels_become_words(tmp_path: Path) -> None:
    import datasets

    label = datasets.ClassLabel(names=["red_fox", "owl"])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    made = datasets.Dataset.from_dict({"image": rows()["image"], "label": [0, 1, -1, 0]}, features)
    made.save_to_disk(str(tmp_path))
    dataset = PictureDataset(HubRecords(str(tmp_path)), Prepare(Want(8), template="a photo of a {}"))
    assert list(dataset.captions()) == [("a photo of a red fox",), ("a photo of a owl",), (), ("a photo of a red fox",)]
    assert [note.reason for note in dataset.examine(2)[1]] == ["has no caption: the column 'label' is empty there"]
    with pytest.raises(ValueError, match="cannot be loaded"):
        HubRecords(str(tmp_path / "nowhere"))


def test_members_that_cannot_be_trusted_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "../climbs.png", encoded(0))
        add(archive, "/absolute.png", encoded(0))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add(archive, "only.txt", b"words")
        add(archive, "list.json", b"[]")
        add(archive, "good.png", encoded(1))
        add(archive, "good.cond.png", encoded(2))
        add(archive, "good.cls", b"owl")
    records = ShardRecords([str(tmp_path)], Places(fields={"conditioning": ".cond.png"}))
    reasons, good = {}, {}
    for number in range(len(records)):
        try:
            good[records.key(number)] = records.record(number)
        except Unusable as error:
            reasons[records.key(number)] = str(error)
    expected = {
        "a.tar/../climbs": "its name '../climbs.png' climbs out of the shard",
        "a.tar//absolute": "its name '/absolute.png' climbs out of the shard",
        "a.tar/link": "is a link or a device in the shard, not a file",
        "a.tar/only": "has no picture, only txt",
        "a.tar/list": "has no picture, only json",
    }
    assert reasons == expected
    assert [*good] == ["a.tar/good"]
    record = good["a.tar/good"]
    assert (record.image, record.fields, record.captions) == (encoded(1), {"conditioning": encoded(2)}, ("owl",))


@pytest.mark.parametrize("first", ["link", "picture"])
def test_one_file_that_cannot_be_trusted_spoils_its_item_wherever_it_stands(tmp_path: Path, first: str) -> None:
    link = tarfile.TarInfo("a.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        if first == "link":
            archive.addfile(link)
        add(archive, "a.png", encoded(0))
        if first == "picture":
            archive.addfile(link)
    with pytest.raises(Unusable, match="is a link or a device"):
        ShardRecords([str(tmp_path)]).record(0)
    with pytest.raises(Unusable, match="is a link or a device"):
        ShardRecords([str(tmp_path)]).captions(0)
    ((_, item),) = ShardStream([str(tmp_path)]).read(0)
    assert isinstance(item, Unusable)
    assert "is a link or a device" in str(item)


def test_a_cut_off_shard_gives_what_it_has(tmp_path: Path) -> None:
    make_shards(tmp_path)
    whole = (tmp_path / "001.tar").read_bytes()
    (tmp_path / "001.tar").write_bytes(whole[: 512 + 700])  # in the middle of its first picture
    dataset = PictureDataset(ShardRecords([str(tmp_path)]), Prepare(Want(8)))
    states = [dataset.examine(number) for number in range(len(dataset))]
    assert [sample is not None for sample, _ in states[:2]] == [True, True]
    reasons = " | ".join(note.reason for _, notes in states for note in notes)
    assert "cut off" in reasons or "cannot be read on" in reasons
    (tmp_path / "002.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"002\.tar\.gz' is compressed"):
        ShardRecords([str(tmp_path / "*.tar*")])
    with pytest.raises(ValueError, match="no shards at"):
        ShardRecords([str(tmp_path / "9*.tar")])
