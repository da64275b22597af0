"""The configuration of a CLIP's training (see :mod:`imagen.training.config.parsing`). Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from imagen.errors import require
from imagen.training.config.sections import RunSettings


@dataclass(frozen=True)
class TowerConfig:
    """A transformer, of pictures or of texts."""

    width: int = 256
    """numbers a position"""
    layers: int = 6
    """attention and feed-forward layers"""
    heads: int = 4
    """of attention; they divide the width"""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads"):
            require(getattr(self, name) > 0, f"clip: {name} {getattr(self, name)} must be positive")
        require(self.width % self.heads == 0, f"clip: width {self.width} is no multiple of heads {self.heads}")


@dataclass(frozen=True)
class ClipConfig:
    """The two towers (Radford et al. 2021, section 2.4)."""

    init_from: str | None = None
    """folder or Hub id of a CLIP or SigLIP to go on from: its sizes, tokenizer and preprocessing hold, and of this
    section gradient_checkpointing alone is read beside; null begins with new weights"""
    image_size: int = 64
    """side of the pictures it sees, in pixels"""
    patch_size: int = 8
    """side of a patch, a position of the picture's tower; divides image_size"""
    image: TowerConfig = field(default_factory=TowerConfig)
    text: TowerConfig = field(default_factory=lambda: TowerConfig(layers=4))
    projection: int = 256
    """numbers of the common space"""
    max_length: int = 77
    """tokens that a text is cut to, with those at its start and its end (77 is the paper's)"""
    vocabulary: int = 4096
    """tokens at most, that the byte pair encoding of the captions learns beyond its 512 (the paper: 49,152 in all)"""
    gradient_checkpointing: bool = False
    """compute activations again in the backward pass: larger batches in the same memory, a third slower"""

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "projection"):
            require(getattr(self, name) > 0, f"clip.{name} {getattr(self, name)} must be positive")
        require(self.max_length > 2, f"clip.max_length {self.max_length} must be above 2: start, a token, end")
        require(self.vocabulary >= 0, f"clip.vocabulary {self.vocabulary} must not be negative")
        size, patch = self.image_size, self.patch_size
        require(size % patch == 0, f"clip.patch_size {patch} must divide clip.image_size, which is {size}")
        for name in type(self).__dataclass_fields__ if self.init_from is not None else ():
            own = name in ("init_from", "gradient_checkpointing") or getattr(self, name) == getattr(ClipConfig(), name)
            require(own, f"clip.{name} is that of clip.init_from {self.init_from!r}: leave it out")


@dataclass(frozen=True)
class ContrastConfig(RunSettings):
    """One training run of a CLIP, one folder."""

    clip: ClipConfig = field(default_factory=ClipConfig)

    def __post_init__(self) -> None:
        require(bool(self.run_dir), "run_dir is missing: add it to the YAML file or pass --run_dir DIR")
        train, held_out = self.train, self.validation.data
        require(
            train.accumulation == 1,
            f"train.accumulation {train.accumulation}: pictures are told apart within the whole batch, which is worked "
            "through at once; set it to 1, and clip.gradient_checkpointing true where memory is short",
        )
        require(train.batch_size > 1, f"train.batch_size {train.batch_size}: a picture needs another to differ from")
        require(
            self.data.kind == "shapes" or held_out != self.data,
            "validation.data equals data: these pictures are trained on, name others",
        )
        for name, data in {"data": self.data, "validation.data": held_out}.items():
            if data is not None:
                told = f"{name}.crop {data.crop}: a caption tells the whole picture, leave it out"
                require(data.crop is None, told)
