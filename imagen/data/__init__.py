"""Sources of pictures with captions, the order they are read in, and the shapes world."""

from .order import StepSampler, micro_positions, sample_index
from .shapes.dataset import ShapesDataset
from .sources import FolderDataset, Sample, Source, collate

__all__ = [
    "FolderDataset",
    "Sample",
    "ShapesDataset",
    "Source",
    "StepSampler",
    "collate",
    "micro_positions",
    "sample_index",
]
