"""The section `data`: every check at both sides of its bound, and every key with every kind of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imagen import data
from imagen.data import ShapesDataset, Want, make_source
from imagen.data.config import DataConfig
from imagen.data.fields import Label
from imagen.data.make import make_records, make_stream
from imagen.errors import ConfigError

KINDS = ("shapes", "folder", "table", "hub", "shards")
STORED = KINDS[1:]
# each key: a value that is not its default, and the kinds of data that it is for
READERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "split": ("heldout", ("hub", "shapes")),
    "image_column": ("other", ("table", "hub")),
    "caption_column": ("other", ("table", "hub", "shards")),
    "captions": ("class", ("folder",)),
    "template": ("a {}", STORED),
    "conditioning": ("pairs", STORED),
    "embedding": ("npy", STORED),
    "flip": (True, STORED),
    "square": ("random", STORED),
    "resize": ("bicubic", STORED),
    "category": ("single", ("shapes",)),
    "variations": (2, ("shapes",)),
    "streaming": (True, ("hub", "shards")),
}


@pytest.mark.parametrize("key", READERS)
def test_a_key_is_for_the_kinds_that_read_it_and_refused_by_the_others(key: str) -> None:
    value, kinds = READERS[key]
    for kind in KINDS:
        place = {} if kind == "shapes" else {"path": "somewhere"}
        given: dict[str, Any] = {"kind": kind, **place, key: value}
        if kind in kinds:
            assert getattr(DataConfig(**given), key) == value
        else:
            told = f"data.{key} {value!r} is of kind {' or '.join(kinds)}, and data.kind is {kind}"
            with pytest.raises(ConfigError) as refused:
                DataConfig(**given)
            assert str(refused.value).startswith(told)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("path", [None, ""])
def test_stored_pictures_lie_somewhere(kind: Any, path: str | None) -> None:
    assert DataConfig().path is None, "the shapes world lies nowhere"
    with pytest.raises(ConfigError, match=f"data.path is missing: kind {kind}"):
        DataConfig(kind, path)


STREAM = {"kind": "shards", "path": "a.tar", "streaming": True}


@pytest.mark.parametrize(
    ("given", "legal", "wrong"),
    [
        ({}, {"crop": 1}, {"crop": 0}),
        ({}, {"max_skipped_share": 0}, {"max_skipped_share": -0.01}),
        ({}, {"max_skipped_share": 1}, {"max_skipped_share": 1.01}),
        (STREAM, {"lanes": 1}, {"lanes": 0}),
        (STREAM, {"lanes": 2}, {"lanes": -2}),
        (STREAM, {"shuffle": 1}, {"shuffle": 0}),
        ({**STREAM, "streaming": False}, {"shuffle": 1000}, {"shuffle": 999}),
        ({**STREAM, "streaming": False}, {"lanes": 1}, {"lanes": 2}),
        ({"kind": "folder", "path": "p"}, {"template": "{}"}, {"template": "a photo"}),
        ({}, {"fields": {"label": "shape"}}, {"fields": {"notes": "shape"}}),
        ({}, {"fields": {"label": "shape", "mask": "color"}}, {"fields": {"label": "shape", "label_mask": "color"}}),
        ({}, {"fields": {"label": "shape"}}, {"fields": {"label": "shape", "lowres": "color"}}),
    ],
)
def test_both_sides_of_every_bound(given: dict[str, Any], legal: dict[str, Any], wrong: dict[str, Any]) -> None:
    assert DataConfig(**given, **legal)
    with pytest.raises(ConfigError, match=f"data.{next(iter(wrong))}"):
        DataConfig(**given, **wrong)


@pytest.mark.parametrize(
    "name", ["image", "caption", "key", "notes", "lowres", "conditioning", "embedding", "a b", "1a", ""]
)
def test_the_name_of_a_field_is_a_word_that_batches_have_no_other_use_for(name: str) -> None:
    with pytest.raises(ConfigError, match="must be a word of letters, and none of image, caption, key, notes, lowres"):
        DataConfig(fields={"label": "shape", name: "color"})


def test_a_field_beside_an_embedding_is_not_called_its_mask() -> None:
    folder: dict[str, Any] = {"kind": "folder", "path": "p"}
    assert DataConfig(**folder, fields={"embedding_mask": "png"}), "there is no embedding"
    with pytest.raises(ConfigError, match="'embedding_mask' is what batches call the mask of 'embedding'"):
        DataConfig(**folder, embedding="npy", fields={"embedding_mask": "png"})


def test_places_are_those_of_the_fields_and_of_the_keys_of_their_own() -> None:
    config = DataConfig("folder", "p", conditioning="pairs", embedding="npy", fields={"label": "cls"})
    assert config.places == {"conditioning": "pairs", "embedding": "npy", "label": "cls"}
    assert DataConfig("folder", "p", embedding="npy").places == {"embedding": "npy"}


def test_the_package_has_the_names_it_says_and_no_others() -> None:
    assert data.make_source is make_source
    assert data.ShapesDataset is ShapesDataset
    with pytest.raises(AttributeError, match="module 'imagen.data' has no attribute 'Shapes'"):
        _ = data.Shapes


def test_every_setting_of_the_shapes_world_is_handed_on() -> None:
    config = DataConfig(split="heldout", crop=8, category="counting", fields={"label": "color"}, variations=3)
    kind = Label(names=("black", "blue", "cyan", "green", "orange", "pink", "purple", "red", "white", "yellow"))
    made = make_source(config, Want(32, lowres_size=16, fields={"label": kind}), seed=7)
    expected = ShapesDataset(32, 7, "heldout", 8, 16, "counting", {"label": "color"}, {"label": kind}, 3)
    assert isinstance(made, ShapesDataset)
    assert vars(made) == vars(expected)


def test_a_field_of_a_folder_lies_beside_the_pictures_or_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "class", "masks", "pairs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"")
    for name, place, found in (
        ("mask", "mask.png", "pictures/a.mask.png"),
        ("mask", "masks", "masks/a.png"),
        ("mask", "pairs/", "pairs/a.png"),
        ("label", "class", "pictures"),  # though there is a folder of that name
        ("conditioning", "pairs", "pairs/a.png"),
        ("conditioning", "class", "class/a.png"),
        ("embedding", "masks", "pictures/a.masks"),
    ):
        given: dict[str, Any] = {name: place} if name in ("conditioning", "embedding") else {"fields": {name: place}}
        records = make_records(DataConfig("folder", "pictures", **given))
        assert str(records.record(0).fields[name]) == found


@pytest.mark.parametrize("streaming", [False, True])
def test_every_path_of_a_list_of_shards_is_read(tmp_path: Any, streaming: bool) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.tar").write_bytes(b"\0" * 1024)
    config = DataConfig("shards", f" {tmp_path}/a , {tmp_path}/b/*.tar", streaming=streaming)
    if streaming:
        stream = make_stream(config)
        assert [stream.name(shard) for shard in range(len(stream))] == [f"{tmp_path}/a/a.tar", f"{tmp_path}/b/b.tar"]
    else:
        with pytest.raises(ValueError, match=r"no files in 2 shards, the first is .*/a/a\.tar"):
            make_records(config)
