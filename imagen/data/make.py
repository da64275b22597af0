"""The source that a `data` section names, made to what its consumer wants of each picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from .config import OWN, DataConfig
from .fields import Kind
from .folder import CLASS, FolderRecords
from .hub import HubRecords, HubStream
from .pictures import PictureDataset, StreamDataset
from .prepare import Prepare, Want
from .records import Places, Records
from .shapes.dataset import ShapesDataset
from .streams import Stream
from .table import TableRecords
from .tar import ShardRecords, ShardStream


def make_source(data: DataConfig, want: Want, seed: int = 0) -> PictureDataset | ShapesDataset | StreamDataset:
    """The pictures that `data` names, as `want` says.

    Args:
        seed: of what is drawn: order of a stream, crops, flips, captions, and the pictures of the shapes world.

    Raises:
        ValueError: nothing there, not what the configuration says, sizes that the source cannot make, or a field that
            is wanted and not named or named and not wanted.
        OSError: it cannot be read.
    """
    _check_fields(data.places, want.fields)
    if data.kind == "shapes":
        split = cast("Literal['train', 'heldout']", data.split)  # it checks the word itself
        return ShapesDataset(
            want.size,
            seed,
            split,
            data.crop,
            want.lowres_size,
            data.category,
            data.places,
            want.fields,
            data.variations,
        )
    return stored_source(data, want, seed)


def stored_source(data: DataConfig, want: Want, seed: int = 0) -> PictureDataset | StreamDataset:
    """The stored pictures that `data`, of any kind but shapes, names. Fields that are not wanted are left alone.

    Raises:
        ValueError: nothing there, not what the configuration says, or sizes that do not fit.
        OSError: it cannot be read.
    """
    least = data.min_size or (1 if data.rules == 1 else want.size)
    resize, profiles = data.resize or "area", data.rules != 1
    prepare = Prepare(want, data.crop, data.square, data.flip, data.template, resize, profiles, least)
    if data.streaming:
        return StreamDataset(make_stream(data), prepare, seed, data.lanes, data.shuffle)
    return PictureDataset(make_records(data), prepare, seed)


def make_records(data: DataConfig) -> Records:
    """The stored pictures that `data` names, of any kind but shapes.

    Raises:
        ValueError: they are not there, or are not what the configuration says.
    """
    path = data.path or ""  # DataConfig has checked it
    if data.kind == "folder":
        fields = {name: _in_folder(name, at) for name, at in data.places.items()}
        return FolderRecords(path, data.captions, fields, data.caption_ending or "txt", data.rules or 2)
    if data.kind == "table":
        return TableRecords(path, _places(data))
    if data.kind == "hub":
        return HubRecords(path, data.split, _places(data))
    return ShardRecords(_listed(path), _places(data))


def make_stream(data: DataConfig) -> Stream:
    """The stored pictures that `data` names, to be read from start to end.

    Raises:
        ValueError: as :func:`make_records`.
    """
    path = data.path or ""
    if data.kind == "hub":
        return HubStream(path, data.split, _places(data))
    return ShardStream(_listed(path), _places(data))


def _check_fields(places: Mapping[str, str], wanted: Mapping[str, Kind]) -> None:
    """An option that nobody reads is a mistake, not something to pass over."""
    for name in wanted:
        if name not in places:
            key = f"data.{name}" if name in OWN else f"data.fields.{name}"
            raise ValueError(f"{key} is missing: it is read here, so say where it is")
    for name in places:
        if name not in wanted:
            raise ValueError(
                f"data.fields {name!r} is read by nothing here, which reads {', '.join(wanted) or 'none'}: leave it out"
            )


def _places(data: DataConfig) -> Places:
    return Places(data.image_column, data.caption_column, data.places, data.caption_ending, data.rules or 2)


def _in_folder(name: str, place: str) -> str | Path:
    """Another folder is told from an ending by a slash in it, or by being there."""
    beside = name == "embedding" or place == CLASS or not ("/" in place or Path(place).is_dir())
    return place if beside and name != "conditioning" else Path(place)


def _listed(path: str) -> list[str]:
    return [part.strip() for part in path.split(",")]
