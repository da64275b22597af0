"""What every source of training data gives: samples, one per index, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Note(NamedTuple):
    """What became of a bad picture or caption: a line of ``skipped.jsonl``."""

    key: str
    action: Literal["skipped", "repaired"]
    reason: str


@dataclass(frozen=True)
class Sample:
    """One training example.

    Attributes:
        key: names the sample in logs; unique in its source.
        image: (C, H, W) float32 in [-1, 1].
        caption: empty when there is none.
        lowres: (C, h, w) float32 in [-1, 1], the same window at the previous stage's resolution or of the picture's
            conditioning image; None for a stage that starts from noise alone.
        embedding: (L, D) float32, the text's encoding where the source holds it; None: the caption is to be encoded.
        notes: what was repaired to make it, and which items were skipped before it.
    """

    key: str
    image: Tensor
    caption: str = ""
    lowres: Tensor | None = None
    notes: tuple[Note, ...] = ()
    embedding: Tensor | None = None


class Source(Protocol):
    """Samples by index. An index at or past ``length`` is a later epoch's: the same item, drawn (cropped) anew."""

    @property
    def length(self) -> int | None:
        """Number of items; None for an endless source."""

    def __getitem__(self, index: int) -> Sample: ...


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Stack samples into ``image`` (B, C, H, W), ``caption``, ``key`` and ``notes`` (lists) and, if there, ``lowres``
    and ``embedding`` (B, L, D), padded to the longest, with ``embedding_mask`` (B, L) bool.

    Raises:
        ValueError: shapes differ, or only some of the samples have a low-res picture.
    """
    batch: dict[str, Any] = {
        "key": [sample.key for sample in samples],
        "image": _stack([sample.image for sample in samples], "image"),
        "caption": [sample.caption for sample in samples],
        "notes": [note for sample in samples for note in sample.notes],
    }
    lowres = [sample.lowres for sample in samples if sample.lowres is not None]
    if lowres and len(lowres) < len(samples):
        missing = next(sample.key for sample in samples if sample.lowres is None)
        raise ValueError(f"sample {missing!r} has no lowres but others of its batch have; give it to all or to none")
    if lowres:
        batch["lowres"] = _stack(lowres, "lowres")
    texts = [sample.embedding for sample in samples if sample.embedding is not None]
    if texts:
        batch["embedding"] = pad_sequence(texts, batch_first=True)
        lengths = torch.tensor([len(text) for text in texts])
        batch["embedding_mask"] = torch.arange(batch["embedding"].shape[1]) < lengths[:, None]
    return batch


def _stack(tensors: Sequence[Tensor], name: str) -> Tensor:
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise ValueError(f"{name} has the shapes {shapes} in one batch; expected one shape: crop or resize them alike")
    return torch.stack(list(tensors))
