"""Sources of pictures with captions, the order they are read in, and the shapes world."""

from .decode import NothingUsable, Unusable
from .order import StepSampler, micro_positions, sample_index
from .pictures import PictureDataset
from .prepare import Prepare
from .records import Fields, FolderRecords, Record, Records
from .shapes.dataset import ShapesDataset
from .sources import Note, Sample, Source, collate
from .stream_batches import StreamBatches, StreamDataset
from .streams import Stream

__all__ = [
    "Fields",
    "FolderRecords",
    "Note",
    "NothingUsable",
    "PictureDataset",
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
    "collate",
    "micro_positions",
    "sample_index",
]
