"""Sources of pictures with captions, the order they are read in, and the shapes world.

Importing this package is cheap, for `imagen.data.config` is read before anything heavy: the names come when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decode import NothingUsable, Unusable
    from .make import Want, make_source
    from .order import StepSampler, micro_positions, sample_index
    from .pictures import PictureDataset
    from .prepare import Prepare
    from .records import FolderRecords, Places, Record, Records
    from .shapes.dataset import ShapesDataset
    from .sources import Note, Sample, Source, collate
    from .stream_batches import StreamBatches, StreamDataset
    from .streams import Stream

_HOMES = {
    "decode": ("NothingUsable", "Unusable"),
    "make": ("Want", "make_source"),
    "order": ("StepSampler", "micro_positions", "sample_index"),
    "pictures": ("PictureDataset",),
    "prepare": ("Prepare",),
    "records": ("FolderRecords", "Places", "Record", "Records"),
    "shapes.dataset": ("ShapesDataset",),
    "sources": ("Note", "Sample", "Source", "collate"),
    "stream_batches": ("StreamBatches", "StreamDataset"),
    "streams": ("Stream",),
}

__all__ = [
    "FolderRecords",
    "Note",
    "NothingUsable",
    "PictureDataset",
    "Places",
    "Prepare",
    "Record",
    "Records",
    "Sample",
    "ShapesDataset",
    "Source",
    "StepSampler",
    "Stream",
    "StreamBatches",
    "StreamDataset",
    "Unusable",
    "Want",
    "collate",
    "make_source",
    "micro_positions",
    "sample_index",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
