"""The section `text` of a configuration: the frozen encoder, or what it made earlier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imagen.errors import require
from imagen.text.reading import Null, Padding, TextDefaults


@dataclass(frozen=True)
class TextConfig:
    """The frozen text encoder, or embeddings that it made earlier."""

    encoder: str | None = None
    """folder or Hub id of a T5 or CLIP with its tokenizer; null trains without text, or with what made text.cache"""
    cache: str | None = None
    """folder that python -m imagen.text.cache wrote: train from it and load no encoder"""
    max_length: int = 128
    """captions are cut to this many tokens, the paper gives none (our choice); a CLIP reads 77 at most"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype the encoder computes in; its output is float32"""
    padding: Padding = "masked"
    """masked: the network never sees it; visible (IF): captions are padded to max_length and all positions are read"""
    unconditional: Null = "zero"
    """what stands for a dropped caption: one zero token, or (IF) the encoding of an empty one"""
    lowercase: bool = False
    """strip and lower-case captions, as IF's were"""

    @property
    def reading(self) -> TextDefaults:
        """How captions are read, in the words of a stored model."""
        return TextDefaults(self.padding, self.unconditional, self.lowercase)

    @property
    def used(self) -> bool:
        """Whether the stage is trained with text."""
        return self.encoder is not None or self.cache is not None

    def __post_init__(self) -> None:
        require(self.max_length > 0, f"text.max_length {self.max_length} must be positive")
        plain = self.cache is None or (self.padding == "masked" and not self.lowercase)
        require(
            plain,
            f"text.cache {self.cache!r} keeps captions as written and without padding: set text.cache null to train "
            "with text.padding visible or text.lowercase",
        )
