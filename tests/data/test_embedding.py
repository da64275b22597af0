"""Texts that come encoded: read from every source, the bad ones told and passed over."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data.decode import Unusable
from imagen.data.fields import Encoded
from imagen.data.folder import FolderRecords
from imagen.data.hub import HubRecords, HubStream
from imagen.data.pictures import PictureDataset, StreamDataset
from imagen.data.prepare import Prepare, Want
from imagen.data.records import Places, Records
from imagen.data.sources import collate
from imagen.data.table import TableRecords
from imagen.data.tar import ShardRecords, ShardStream

WIDTH = 3


def text(number: int) -> np.ndarray:
    """The encoding of text `number`, of `number + 1` tokens."""
    return np.random.default_rng(number).standard_normal((number + 1, WIDTH)).astype(np.float16)


def npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def npz(values: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, values)
    return stream.getvalue()


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def folder(root: Path) -> Records:
    for number in range(3):
        (root / f"{number}.png").write_bytes(png(number))
        (root / f"{number}.t5.npy").write_bytes(npy(text(number)))
    return FolderRecords(root, fields={"embedding": "t5.npy"})


def csv_table(root: Path) -> Records:
    folder(root)
    with (root / "list.csv").open("w", newline="") as stream:
        rows = [("image", "text", "encoded"), *((f"{n}.png", "words", f"{n}.t5.npy") for n in range(3))]
        csv.writer(stream).writerows(rows)
    return TableRecords(root / "list.csv", Places(fields={"embedding": "encoded"}))


def json_table(root: Path) -> Records:
    folder(root)
    rows = [{"file_name": f"{n}.png", "encoded": text(n).tolist()} for n in range(3)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TableRecords(root, Places(fields={"embedding": "encoded"}))


def saved_dataset(root: Path) -> str:
    import datasets

    rows = {"image": [{"bytes": png(n), "path": None} for n in range(3)], "t5": [text(n).tolist() for n in range(3)]}
    numbers = datasets.Sequence(datasets.Sequence(datasets.Value("float16")))
    datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), "t5": numbers})).save_to_disk(root)
    return str(root)


def hub(root: Path) -> Records:
    return HubRecords(saved_dataset(root), places=Places(fields={"embedding": "t5"}))


def hub_stream(root: Path) -> Any:
    return HubStream(saved_dataset(root), places=Places(fields={"embedding": "t5"}))


def shard(root: Path) -> list[str]:
    with tarfile.open(root / "0.tar", "w") as archive:
        for number in range(3):
            for ending, data in (("png", png(number)), ("T5.npy", npy(text(number)))):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return [str(root)]


def shards(root: Path) -> Records:
    return ShardRecords(shard(root), Places(fields={"embedding": ".t5.npy"}))


def shard_stream(root: Path) -> Any:
    return ShardStream(shard(root), Places(fields={"embedding": "t5.npy"}))


@pytest.mark.parametrize("make", [folder, csv_table, json_table, hub, shards, hub_stream, shard_stream])
def test_every_source_gives_them(tmp_path: Path, make: Any) -> None:
    prepare = Prepare(Want(8, captions="optional", fields={"embedding": Encoded(5, WIDTH)}))
    stored = make(tmp_path)
    if make in (hub_stream, shard_stream):
        samples = StreamDataset(stored, prepare, 0, 1, 1).head(3)
    else:
        samples = [PictureDataset(stored, prepare)[number] for number in range(3)]
    batch = collate(samples)
    assert batch["embedding"].shape == (3, 3, WIDTH)
    assert batch["embedding"].dtype == torch.float32
    for row, number in enumerate((0, 1, 2)):
        expected = torch.from_numpy(text(number)).float()
        assert torch.equal(batch["embedding"][row, : number + 1], expected)
        assert batch["embedding_mask"][row].tolist() == [True] * (number + 1) + [False] * (2 - number)


GOOD = np.ones((2, WIDTH), np.float32)
BAD = [
    (None, "has no embedding"),
    (Path("/nowhere.npy"), "embedding cannot be read: No such file"),
    (b"", "is no .npy file"),
    (npy(GOOD)[:-4], "is no .npy file"),
    (npy(np.array([{}])), "is no .npy file of numbers: Object arrays cannot be loaded"),
    (npy(np.ones((2, WIDTH), np.int32)), "holds int32; expected floats"),
    (npy(np.ones(WIDTH)), r"has shape \(3,\); expected \(1 to 4 tokens, 3\)"),
    (npy(np.ones((2, 5))), r"has shape \(2, 5\)"),
    (npy(np.ones((5, WIDTH))), r"has shape \(5, 3\)"),
    (npy(np.ones((0, WIDTH))), r"has shape \(0, 3\)"),
    (npy(np.where(np.eye(2, WIDTH) > 0, np.nan, 1.0)), "not finite"),
    (npy(np.full((2, WIDTH), np.inf, np.float16)), "not finite"),
    ([[1.0, 2.0], [3.0]], "is no .npy file of numbers"),
    ("words", "expected floats"),
    (npz(GOOD), "embedding holds NpzFile; expected floats"),
]


@pytest.mark.parametrize(("raw", "reason"), BAD)
def test_a_bad_one_is_told(raw: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        Encoded(4, WIDTH).read(raw, "embedding")


def test_a_picture_with_a_bad_one_is_replaced(tmp_path: Path) -> None:
    records = folder(tmp_path)
    broken = text(1)
    broken[0, 0] = np.nan
    (tmp_path / "1.t5.npy").write_bytes(npy(broken))
    (tmp_path / "2.t5.npy").unlink()
    dataset = PictureDataset(records, Prepare(Want(8, captions="optional", fields={"embedding": Encoded(5, WIDTH)})))
    for number, reason in ((1, "not finite"), (2, "cannot be read: No such file")):
        sample = dataset[number]
        assert sample.key == "0.png"
        assert {note.key for note in sample.notes} <= {"1.png", "2.png"}
        assert reason in sample.notes[0].reason
