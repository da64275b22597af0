"""Every source gives fields: a label and a mask come with their picture, and bad ones are told."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data import ShapesDataset, Want, make_source
from imagen.data.config import DataConfig
from imagen.data.fields import Encoded, Kind, Label, Paired
from imagen.data.pictures import PictureDataset, StreamDataset
from imagen.data.shapes.language import COLORS, SHAPES
from imagen.data.sources import Sample, collate
from imagen.errors import ConfigError

NAMES = ("owl", "red fox", "cat")
CLASSES = [1, 0, 2, 1]
WANTED: dict[str, Kind] = {"label": Label(names=NAMES), "mask": Paired(8, channels=1, binary=True)}


def mask(number: int) -> np.ndarray:
    """Of 16 × 16 pixels, half white: random blocks of 2 × 2, so that it stays what it is at half the size."""
    cells = np.random.default_rng(number).random((8, 8)) < 0.5
    return np.kron(cells, np.ones((2, 2))).astype(np.uint8) * 255


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def picture(number: int) -> bytes:
    return png(np.repeat(mask(number)[..., None], 3, axis=-1))  # the picture is its mask, in colour


def beside(root: Path) -> DataConfig:
    for number, one in enumerate(CLASSES):
        (root / f"{number}.png").write_bytes(picture(number))
        (root / f"{number}.mask.png").write_bytes(png(mask(number)))
        (root / f"{number}.cls").write_text(NAMES[one].replace(" ", "_") + "\n")
    return DataConfig("folder", str(root), fields={"label": "cls", "mask": "mask.png"})


def folders(root: Path) -> DataConfig:
    for name in ("pictures", "masks", "labels"):
        (root / name).mkdir()
    for number, one in enumerate(CLASSES):
        (root / "pictures" / f"{number}.png").write_bytes(picture(number))
        np.save(root / "masks" / f"{number}.npy", mask(number) > 0)
        (root / "labels" / f"{number}.txt").write_text(str(one))
    places = {"label": str(root / "labels"), "mask": str(root / "masks")}
    return DataConfig("folder", str(root / "pictures"), fields=places)


def in_class_folders(root: Path) -> DataConfig:
    for number, one in enumerate(CLASSES):
        folder = root / str(number) / NAMES[one].replace(" ", "_")
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(picture(number))
        (folder / "a.mask.png").write_bytes(png(mask(number)))
    return DataConfig("folder", str(root), fields={"label": "class", "mask": ".mask.png"})


def csv_table(root: Path) -> DataConfig:
    beside(root)
    with (root / "list.csv").open("w", newline="") as stream:
        rows = [(f"{n}.png", NAMES[one], f"{n}.mask.png") for n, one in enumerate(CLASSES)]
        csv.writer(stream).writerows([("image", "species", "hole"), *rows])
    return DataConfig("table", str(root / "list.csv"), fields={"label": "species", "mask": "hole"})


def parquet(root: Path) -> DataConfig:
    import pyarrow
    import pyarrow.parquet

    cells = {
        "image": [{"bytes": picture(n), "path": None} for n in range(4)],
        "label": [float(one) for one in CLASSES],
        "hole": [png(mask(n)) for n in range(4)],
    }
    pyarrow.parquet.write_table(pyarrow.table(cells), root / "metadata.parquet")
    return DataConfig("table", str(root), fields={"label": "label", "mask": "hole"})


def hub(root: Path, **options: Any) -> DataConfig:
    import datasets

    own = datasets.ClassLabel(names=["cat", "owl", "red_fox"])  # in another order than the consumer's
    cells = {
        "image": [{"bytes": picture(n), "path": None} for n in range(4)],
        "label": [own.str2int(NAMES[one].replace(" ", "_")) for one in CLASSES],
        "hole": [{"bytes": png(mask(n)), "path": None} for n in range(4)],
    }
    features = datasets.Features({"image": datasets.Image(), "label": own, "hole": datasets.Image()})
    datasets.Dataset.from_dict(cells, features).save_to_disk(str(root))
    return DataConfig("hub", str(root), fields={"label": "label", "mask": "hole"}, **options)


def shards(root: Path, **options: Any) -> DataConfig:
    with tarfile.open(root / "0.tar", "w") as archive:
        for number, one in enumerate(CLASSES):
            files = {"png": picture(number), "Mask.png": png(mask(number)), "cls": NAMES[one].encode()}
            for ending, data in files.items():
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return DataConfig("shards", str(root), fields={"label": "cls", "mask": "mask.png"}, **options)


def json_shards(root: Path, **options: Any) -> DataConfig:
    with tarfile.open(root / "0.tar", "w") as archive:
        for number, one in enumerate(CLASSES):
            told = json.dumps({"label": one, "text": "words"}).encode()
            for ending, data in {"png": picture(number), "mask.png": png(mask(number)), "json": told}.items():
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return DataConfig("shards", str(root), fields={"label": "json:label", "mask": "mask.png"}, **options)


def hub_stream(root: Path) -> DataConfig:
    return hub(root, streaming=True, shuffle=1)


def shard_stream(root: Path) -> DataConfig:
    return shards(root, streaming=True, shuffle=1)


def json_stream(root: Path) -> DataConfig:
    return json_shards(root, streaming=True, shuffle=1)


SOURCES = [beside, folders, in_class_folders, csv_table, parquet, hub, shards, json_shards]
STREAMS = [hub_stream, shard_stream, json_stream]


def read(config: DataConfig, want: Want) -> list[Sample]:
    source = make_source(config, want)
    if isinstance(source, StreamDataset):
        return source.head(4)
    assert isinstance(source, PictureDataset)
    assert len(source) == 4, "the masks are no pictures"
    return [source[number] for number in range(4)]


@pytest.mark.parametrize("make", [*SOURCES, *STREAMS])
def test_every_source_gives_a_label_and_a_mask(tmp_path: Path, make: Callable[[Path], DataConfig]) -> None:
    batch = collate(read(make(tmp_path), Want(16, captions="optional", fields=WANTED)))
    assert batch["notes"] == []
    assert torch.equal(batch["label"], torch.tensor(CLASSES))
    assert batch["mask"].dtype == torch.float32
    expected = torch.stack([torch.from_numpy(mask(number)[::2, ::2] // 255) for number in range(4)])
    assert torch.equal(batch["mask"], expected[:, None].float())


@pytest.mark.parametrize(
    ("make", "caption"), [(beside, ""), (csv_table, ""), (parquet, ""), (shards, ""), (json_shards, "words"), (hub, "")]
)
def test_a_field_is_not_taken_for_a_caption(tmp_path: Path, make: Any, caption: str) -> None:
    config = make(tmp_path)
    (tmp_path / "0.txt").write_text("3")
    if make is beside:
        config = replace(config, fields={**config.fields, "score": "txt"})
    wanted = {name: Label(4) if name == "score" else WANTED[name] for name in config.fields}
    source = make_source(config, Want(16, captions="optional", fields=wanted))
    assert source[0].caption == caption  # type: ignore[index]
    required = make_source(config, Want(16, fields=wanted))
    assert isinstance(required, PictureDataset)
    assert [note.reason.partition(":")[0] for note in required.examine(0)[1]] == ([] if caption else ["has no caption"])


def test_a_mask_is_cut_windowed_and_mirrored_with_its_picture(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    wide = np.kron(np.random.default_rng(0).random((16, 40)) < 0.5, np.ones((4, 4))).astype(np.uint8) * 255
    (tmp_path / "a" / "0.png").write_bytes(png(wide))
    (tmp_path / "b" / "0.png").write_bytes(png(wide[::2, ::2]))
    fields: dict[str, Kind] = {"hole": Paired(32, 1, binary=True), "rough": Paired(16, 1, resize="nearest")}
    config = DataConfig(
        "folder", str(tmp_path / "a"), crop=16, square="random", flip=True,
        fields={"hole": f"{tmp_path}/b", "rough": f"{tmp_path}/b/"},
    )  # fmt: skip
    source = make_source(config, Want(64, lowres_size=32, channels=1, captions="optional", fields=fields))
    windows = set()
    for index in range(30):
        sample = source[index]  # type: ignore[index]
        means = sample.image.reshape(1, 8, 2, 8, 2).mean((2, 4))  # PIL cuts a square where blocks are not whole
        hole, rough = sample.fields["hole"], sample.fields["rough"]
        clear = means.abs() > 0.9
        assert clear.float().mean() > 0.3
        assert torch.equal(hole[clear], (means[clear] > 0).float())
        assert torch.equal(sample.lowres, means) or (sample.lowres - means).abs().max() < 0.02  # type: ignore[operator]
        assert rough.shape == (1, 4, 4)
        windows.add(tuple(hole.flatten().tolist()))
    assert len(windows) > 15


def test_pictures_with_bad_fields_are_skipped_with_the_reason(tmp_path: Path) -> None:
    config = beside(tmp_path)
    (tmp_path / "1.cls").write_text("dog")
    (tmp_path / "2.cls").unlink()
    (tmp_path / "3.mask.png").write_bytes(png(np.zeros((9, 16), np.uint8)))
    source = make_source(config, Want(16, captions="optional", fields=WANTED))
    assert isinstance(source, PictureDataset)
    reasons = [source.examine(number)[1][0].reason for number in (1, 2, 3)]
    assert reasons[0].startswith("label is 'dog'; expected one of owl")
    assert reasons[1].startswith("label cannot be read: No such file")
    assert reasons[2] == "is 16 x 16 but its mask picture 16 x 9: of another shape"
    for number in (1, 2, 3):
        assert source[number].key == "0.png"
        assert source[number].fields["label"] == CLASSES[0]


def test_items_of_shards_without_a_field_are_told(tmp_path: Path) -> None:
    config = shards(tmp_path)
    for place, reason in (("other.cls", "has no label .other.cls"), ("json:class", "has no label .json")):
        for streaming in (False, True):
            made = DataConfig("shards", config.path, streaming=streaming, fields={"label": place})
            source = make_source(made, Want(16, captions="optional", fields={"label": Label(3)}))
            states = source.examine() if isinstance(source, StreamDataset) else [source.examine(0)]  # type: ignore[union-attr, list-item]
            assert next(iter(states))[1][0].reason == reason


def test_only_some_samples_with_a_field_make_no_batch() -> None:
    image = torch.zeros(3, 2, 2)
    with pytest.raises(ValueError, match="sample 'b' has no label but others"):
        collate([Sample("a", image, fields={"label": 1}), Sample("b", image)])


def test_the_shapes_world_tells_its_first_object() -> None:
    config = DataConfig(fields={"label": "shape", "tone": "color"})
    own = ("black", *(color for color in COLORS if color != "black"))
    source = make_source(config, Want(8, fields={"label": Label(len(SHAPES)), "tone": Label(names=own)}))
    assert isinstance(source, ShapesDataset)
    for index in range(20):
        first, fields = source.scene(index)[0].things[0], source[index].fields
        assert (SHAPES[fields["label"]], own[fields["tone"]]) == (first.shape, first.color)  # type: ignore[index]
    alone = ShapesDataset(8, fields={"label": "color"})
    assert list(COLORS)[alone[3].fields["label"]] == alone.scene(3)[0].things[0].color  # type: ignore[index, call-overload]
    for fact, kind in (("size", None), ("shape", Encoded(1, 2))):
        with pytest.raises(ValueError, match=f"field 'label' is '{fact}' .*has a Label, 'shape' or 'color'"):
            ShapesDataset(8, fields={"label": fact}, kinds={} if kind is None else {"label": kind})


def test_what_is_named_and_what_is_wanted_must_agree(tmp_path: Path) -> None:
    config = beside(tmp_path)
    with pytest.raises(ValueError, match=r"data.fields 'mask' is read by nothing here, which reads label"):
        make_source(config, Want(16, fields={"label": Label(3)}))
    with pytest.raises(ValueError, match=r"data.fields.depth is missing: it is read here"):
        make_source(config, Want(16, fields={**WANTED, "depth": Paired(16)}))
    with pytest.raises(ValueError, match=r"data.conditioning is missing: it is read here"):
        make_source(config, Want(16, fields={**WANTED, "conditioning": Paired(16)}))
    with pytest.raises(ValueError, match="size of mask is 5; expected a divisor of size, which is 16"):
        make_source(config, Want(16, fields={**WANTED, "mask": Paired(5)}))
    with pytest.raises(ValueError, match=r"there is no folder '.*/masks'"):
        make_source(
            DataConfig("folder", str(tmp_path), fields={"mask": f"{tmp_path}/masks"}),
            Want(16, fields={"mask": Paired(8)}),
        )
    (tmp_path / "t.csv").write_text("a,image\n1,0.png\n")
    table = DataConfig("table", str(tmp_path / "t.csv"), fields={"depth": "b"})
    with pytest.raises(ValueError, match=r"there is no depth column of .*the columns are a, image"):
        make_source(table, Want(8, fields={"depth": Label(3)}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "x"}, "data.fields 'image' must be a word of letters, and none of image, caption"),
        ({"two words": "x"}, "must be a word of letters"),
        ({"label": ""}, "data.fields.label is empty"),
        ({"t": "npy", "t_mask": "png"}, "'t_mask' is what batches call the mask of 't'"),
    ],
)
def test_names_that_cannot_be_are_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(fields=fields)
