"""The source that a `data` section names, made to what its consumer wants of each picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from .config import OWN, DataConfig
from .fields import Kind
from .pictures import PictureDataset
from .prepare import Prepare
from .records import CLASS, FolderRecords, Places, Records
from .shapes.dataset import ShapesDataset
from .stream_batches import StreamDataset
from .streams import Stream


@dataclass(frozen=True)
class Want:
    """What a consumer wants of each picture, whatever source it comes from.

    Attributes:
        size: side of the whole picture in pixels.
        lowres_size: side of the same picture made small, a divisor of ``size``; None wants none.
        channels: of both.
        captions: ``"required"``: a picture without a caption is skipped; ``"optional"``: its caption is empty.
        fields: what else, by name, and of which kind each is; a `data` section says where it comes from.
    """

    size: int
    lowres_size: int | None = None
    channels: int = 3
    captions: Literal["required", "optional"] = "required"
    fields: Mapping[str, Kind] = field(default_factory=dict)


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
            want.size, seed, split, data.crop, want.lowres_size, data.category, data.places, want.fields
        )
    prepare = Prepare(
        want.size,
        data.crop,
        want.lowres_size,
        data.square,
        data.flip,
        captions=want.captions,
        template=data.template,
        channels=want.channels,
        kinds=want.fields,
        resize=data.resize or "area",
    )
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
        return FolderRecords(path, data.captions, _in_folder(data))
    if data.kind == "table":
        from .table import TableRecords

        return TableRecords(path, _places(data))
    if data.kind == "hub":
        from .hub import HubRecords

        return HubRecords(path, data.split, _places(data))
    from .tar import ShardRecords

    return ShardRecords(_listed(path), _places(data))


def make_stream(data: DataConfig) -> Stream:
    """The stored pictures that `data` names, to be read from start to end.

    Raises:
        ValueError: as :func:`make_records`.
    """
    path = data.path or ""
    if data.kind == "hub":
        from .hub import HubStream

        return HubStream(path, data.split, _places(data))
    from .shard_stream import ShardStream

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
    return Places(data.image_column, data.caption_column, data.places)


def _in_folder(data: DataConfig) -> dict[str, str | Path]:
    """Another folder is told from an ending by a slash in it, or by being there."""
    places: dict[str, str | Path] = {
        name: Path(place) if "/" in place or (place != CLASS and Path(place).is_dir()) else place
        for name, place in data.fields.items()
    }
    if data.conditioning is not None:
        places["conditioning"] = Path(data.conditioning)
    if data.embedding is not None:
        places["embedding"] = data.embedding
    return places


def _listed(path: str) -> list[str]:
    return [part.strip() for part in path.split(",")]
