"""The section `data` of a configuration: where the pictures come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from imagen.errors import require, require_reader

OWN = ("conditioning", "embedding")  # fields with a key of their own
TAKEN = ("image", "caption", "key", "notes", "lowres", *OWN)  # no names for others


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures come from."""

    kind: Literal["shapes", "folder", "table", "hub", "shards"] = "shapes"
    """shapes (the endless synthetic world), folder (pictures with .txt captions beside them), table (metadata.jsonl,
    CSV, TSV or parquet), hub (a Hugging Face dataset, by id or local) or shards (local webdataset tar files)"""
    path: str | None = None
    """the folder, the table or its folder, the dataset's id or folder, or shards (paths and globs, comma-separated)"""
    split: str = "train"
    """split of a Hugging Face dataset, or of the shapes world: train, or heldout for combinations that train lacks"""
    image_column: str | None = None
    """column with the pictures, for kinds table and hub; null takes file_name, image or another usual name"""
    caption_column: str | None = None
    """column with the captions (kinds table and hub) or key in .json files (kind shards); null takes a usual name"""
    captions: Literal["file", "class"] = "file"
    """for kind folder: a .txt file beside each picture, a caption a line, or the name of the folder it lies in"""
    caption_ending: str | None = None
    """of the files with captions, a caption a line (kinds folder and shards); null is .txt, in shards also .cls (the
    class, as text) and .json"""
    template: str | None = None
    """put around each caption or class name, with {} in its place: "a photo of a {}" """
    conditioning: str | None = None
    """paired pictures to start from, in place of the picture made small: another folder, a column, or an ending in
    shards such as cond.png"""
    embedding: str | None = None
    """texts encoded before, (tokens, width) each, in place of the captions: an ending such as t5.npy of files beside
    the pictures or in shards, or a column of them or of the numbers"""
    fields: dict[str, str] = field(default_factory=dict)
    """what else the pictures come with, by name: a column (kinds table and hub), an ending of files beside the pictures
    or in shards, json:KEY in shards; for kind folder also another folder, or class for the name of a picture's own; for
    kind shapes the shape or color of the first object"""
    streaming: bool = False
    """read kinds hub and shards from start to end as they come, over a network too, instead of at random"""
    lanes: int = 1
    """parts that a stream is read in, side by side: a multiple of the processes; the order depends on it alone"""
    shuffle: int = 1000
    """records of each lane of a stream that are shuffled together (held in memory, not decoded)"""
    max_skipped_share: float = 0.01
    """stop when more than this share of the pictures cannot be used; run_dir/skipped.jsonl names them"""
    crop: int | None = None
    """train on windows of this many pixels instead of whole pictures (convolutional SR stages)"""
    square: Literal["center", "random"] = "center"
    """where a picture that is not square is cut; all kinds but shapes"""
    resize: Literal["area", "bicubic"] | None = None
    """how pictures are reduced to the stage's size: area (means, as the cascade reduces them) or bicubic (Pillow's);
    null is area in a new run, and else what the run began with; all kinds but shapes"""
    rules: Literal[1, 2] | None = None
    """how stored pictures are found and read: 2 (colours as their profiles mean them, in sRGB; names in shards may hold
    dots; links to folders are followed, and every format of Pillow is known; none is enlarged unless min_size allows
    it) or 1 (none of these); null is 2 in a new run, and else what the run began with; all kinds but shapes"""
    min_size: int | None = None
    """pixels that the shorter side of a picture must have, else it is skipped; null is the stage's size, below which a
    picture is enlarged and blurred (any size where rules are 1); all kinds but shapes"""
    flip: bool = False
    """mirror half of the pictures, all kinds but shapes (wrong for captions that say left or right)"""
    category: Literal["single", "relation", "counting", "background"] | None = None
    """only captions of this category, for kind shapes; null mixes them"""
    variations: int = 1
    """for kind shapes: so many pictures in a row of which all but the first differ from it in one fact each, which a
    CLIP has to see; 1 draws each picture alone"""

    def __post_init__(self) -> None:
        require(self.kind == "shapes" or bool(self.path), f"data.path is missing: kind {self.kind} needs --data.path")
        require(self.crop is None or self.crop > 0, f"data.crop {self.crop} must be positive or null")
        share = self.max_skipped_share
        require(0 <= share <= 1, f"data.max_skipped_share {share} must lie in [0, 1]: 0.01 allows one in a hundred")
        require(self.min_size is None or self.min_size > 0, f"data.min_size {self.min_size} must be positive or null")
        require(self.variations > 0, f"data.variations {self.variations} must be positive; 1 draws each picture alone")
        require(self.lanes > 0, f"data.lanes {self.lanes} must be positive")
        require(self.shuffle > 0, f"data.shuffle {self.shuffle} must be positive; 1 keeps the stored order")
        template = self.template
        require(template is None or "{}" in template, f"data.template {template!r} needs {{}} where the caption goes")
        self._check_unread()
        self._check_fields()

    @property
    def places(self) -> Mapping[str, str]:
        """Where all fields are: those of `fields`, and those that have a key of their own."""
        own = {name: getattr(self, name) for name in OWN}
        return {**{name: place for name, place in own.items() if place is not None}, **self.fields}

    def _check_fields(self) -> None:
        for name, place in self.fields.items():
            told = f"data.fields {name!r} must be a word of letters, and none of {', '.join(TAKEN)}"
            require(name.isidentifier() and name not in TAKEN, told)
            require(bool(place), f"data.fields.{name} is empty: say where it is, a column or an ending for example")
            sequence = name.removesuffix("_mask")
            told = f"data.fields {name!r} is what batches call the mask of {sequence!r}: choose another name"
            require(name == sequence or sequence not in self.places, told)

    def _check_unread(self) -> None:
        """An option of another kind of data is a mistake, not something to pass over."""
        stored = ("folder", "table", "hub", "shards")
        readers = {
            "split": ("hub", "shapes"),
            "image_column": ("table", "hub"),
            "caption_column": ("table", "hub", "shards"),
            "captions": ("folder",),
            "caption_ending": ("folder", "shards"),
            **dict.fromkeys(
                ("template", "conditioning", "embedding", "flip", "square", "resize", "rules", "min_size"), stored
            ),
            "category": ("shapes",),
            "variations": ("shapes",),
            "streaming": ("hub", "shards"),
            "path": stored,
        }
        require_reader("data", self, self.kind, readers)
        for name in ("lanes", "shuffle"):
            value = getattr(self, name)
            told = f"data.{name} {value} is for streams: set data.streaming true, or leave it out"
            require(self.streaming or value == getattr(DataConfig, name), told)
