"""The source that a `data` section names, made to what its consumer wants of each picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from .config import DataConfig
from .pictures import PictureDataset
from .prepare import Prepare
from .records import Fields, FolderRecords, Records
from .shapes.dataset import ShapesDataset
from .stream_batches import StreamDataset
from .streams import Stream


@dataclass(frozen=True)
class Want:
    """What a consumer wants of each picture, whatever source it comes from.

    Attributes:
        size: side of the whole picture in pixels.
        lowres_size: side of its low-res picture; None wants none.
        channels, lowres_channels: of the two.
        captions: ``"required"``: a picture without a caption is skipped; ``"optional"``: its caption is empty.
        text: most tokens and width of texts that come encoded; None: they are not wanted.
    """

    size: int
    lowres_size: int | None = None
    channels: int = 3
    lowres_channels: int = 3
    captions: Literal["required", "optional"] = "required"
    text: tuple[int, int] | None = None


def make_source(data: DataConfig, want: Want, seed: int = 0) -> PictureDataset | ShapesDataset | StreamDataset:
    """The pictures that `data` names, as `want` says.

    Args:
        seed: of what is drawn: order of a stream, crops, flips, captions, and the pictures of the shapes world.

    Raises:
        ValueError: nothing there, not what the configuration says, or sizes that the source cannot make.
        OSError: it cannot be read.
    """
    if data.kind == "shapes":
        split = cast("Literal['train', 'heldout']", data.split)  # it checks the word itself
        return ShapesDataset(want.size, seed, split, data.crop, want.lowres_size, data.category)
    prepare = Prepare(
        want.size,
        data.crop,
        want.lowres_size,
        data.square,
        data.flip,
        captions=want.captions,
        template=data.template,
        channels=want.channels,
        lowres_channels=want.lowres_channels,
        text=want.text,
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
        return FolderRecords(path, data.captions, data.conditioning, data.embedding)
    if data.kind == "table":
        from .table import TableRecords

        return TableRecords(path, _fields(data))
    if data.kind == "hub":
        from .hub import HubRecords

        return HubRecords(path, data.split, _fields(data))
    from .tar import ShardRecords

    return ShardRecords(_listed(path), _fields(data))


def make_stream(data: DataConfig) -> Stream:
    """The stored pictures that `data` names, to be read from start to end.

    Raises:
        ValueError: as :func:`make_records`.
    """
    path = data.path or ""
    if data.kind == "hub":
        from .hub import HubStream

        return HubStream(path, data.split, _fields(data))
    from .shard_stream import ShardStream

    return ShardStream(_listed(path), _fields(data))


def _fields(data: DataConfig) -> Fields:
    return Fields(data.image_column, data.caption_column, data.conditioning, data.embedding)


def _listed(path: str) -> list[str]:
    return [part.strip() for part in path.split(",")]
