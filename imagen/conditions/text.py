"""Text as a condition: no text, dropped texts, and batches of texts of different length.

"No text" is one zero token that attention may see, in training and in sampling, whatever the prompt's length. The paper
zeroes the embeddings (sections 2.2 and 4.1); that it is one token is our choice, so that the null half does not depend
on padding.

A text is a pair (B, L, D) embeddings, (B, L) mask with 1 (True) at real tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from imagen.text.reading import Null

from .condition import Draw, Given

if TYPE_CHECKING:
    from imagen.data.fields import Encoded
    from imagen.data.prepare import Want
    from imagen.text.encoder import Tokens


def null_text(batch: int, dim: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The text of the unconditional half: one zero token. (batch, 1, dim) zeros and a (batch, 1) bool mask of ones."""
    return torch.zeros(batch, 1, dim, device=device), torch.ones(batch, 1, device=device, dtype=torch.bool)


def drop_text(text: Tensor, mask: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the texts of the rows in ``drop`` by no text: all zeros, of which only the first token is unmasked.

    Args:
        text: (B, L, D), L at least 1.
        mask: (B, L), 1 = real token, any dtype.
        drop: (B,) bool, rows to drop (10 % of the training rows in the paper, section 4.1).

    Returns:
        text and mask of the same shapes and dtypes; the inputs are left alone.
    """
    null_mask = torch.zeros_like(mask)
    null_mask[:, 0] = 1
    return text.masked_fill(drop[:, None, None], 0), torch.where(drop[:, None], null_mask, mask)


def cat_text(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two texts (embeddings, mask) as one batch, the shorter padded: (B1 + B2, max L, D) and (B1 + B2, max L).

    Embeddings and mask take the dtypes of ``first``.
    """
    length = max(first[0].shape[1], second[0].shape[1])
    texts = [pad(text.to(first[0].dtype), (0, 0, 0, length - text.shape[1])) for text, _ in (first, second)]
    masks = [pad(mask.to(first[1].dtype), (0, length - mask.shape[1])) for _, mask in (first, second)]
    return torch.cat(texts), torch.cat(masks)


@dataclass(frozen=True)
class Words:
    """The texts of a batch: captions, and (B, L, D) with a mask (B, L) where they come encoded.

    Attributes:
        tokens: of the captions, where the loader has made them.
    """

    captions: Sequence[str]
    embedding: Tensor | None = None
    mask: Tensor | None = None
    tokens: Tokens | None = None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Words:
        """Those of a collated batch."""
        return cls(raw["caption"], raw.get("embedding"), raw.get("embedding_mask"), raw.get("tokens"))

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, rows: slice) -> Words:
        if self.embedding is None or self.mask is None:
            return Words(self.captions[rows])
        return Words(self.captions[rows], self.embedding[rows], self.mask[rows])


@dataclass(frozen=True)
class Captions:
    """The text of the pictures as a condition in training (see :mod:`imagen.conditions.condition`).

    Attributes:
        read: words -> (B, L, D) and (B, L) on the device.
        null: what stands for a dropped caption: one zero token, or the encoding of an empty one.
        required: pictures without a caption are left out.
        encoded: of which kind they are where they come encoded.
    """

    read: Callable[[Words], tuple[Tensor, Tensor]]
    null: Null = "zero"
    required: bool = True
    encoded: Encoded | None = None

    def wants(self, want: Want) -> Want:
        """Captions, or what was made of them."""
        fields = {} if self.encoded is None else {"embedding": self.encoded}
        captions = "required" if self.required else want.captions
        return replace(want, captions=captions, fields={**want.fields, **fields})

    def batch(self, raw: Mapping[str, Any], image: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) in the pictures' dtype and a mask (B, L); an empty caption is encoded as any other."""
        words = Words.of(raw)
        if self.null == "empty":
            gone = drop.tolist()
            words = Words(["" if off else caption for caption, off in zip(words.captions, gone, strict=True)])
        text, mask = self.read(words)
        return text.to(image.dtype), mask

    def inputs(self, part: tuple[Tensor, Tensor], draw: Draw) -> Given:
        """text (B, L, D) and text_mask (B, L), the dropped ones null."""
        text, mask = part if self.null == "empty" else drop_text(*part, draw.drop)
        return Given({"text": text, "text_mask": mask})
