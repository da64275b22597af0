"""What every source of training data gives: samples, one per index, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .fields import Value


class Note(NamedTuple):
    """What became of a bad picture or caption: a line of ``skipped.jsonl``.

    *Skipped* pictures are not used, *repaired* ones were changed to be read; of *noted* ones, which are used as they
    are, the owner should know.
    """

    key: str
    action: Literal["skipped", "repaired", "noted"]
    reason: str


@dataclass(frozen=True)
class Sample:
    """One training example.

    Attributes:
        key: names the sample in logs; unique in its source.
        image: (C, H, W) float32 in [-1, 1].
        caption: empty when there is none.
        lowres: (C, h, w) float32 in [-1, 1], the same window of the picture made small; None where nobody wants it.
        notes: what was repaired to make it, and which items were skipped before it.
        fields: what else it has, by name, see :mod:`imagen.data.fields`.
    """

    key: str
    image: Tensor
    caption: str = ""
    lowres: Tensor | None = None
    notes: tuple[Note, ...] = ()
    fields: Mapping[str, Value] = field(default_factory=dict)


class Source(Protocol):
    """Samples by index. An index at or past ``length`` is a later epoch's: the same item, drawn (cropped) anew."""

    @property
    def length(self) -> int | None:
        """Number of items; None for an endless source."""

    def __getitem__(self, index: int) -> Sample: ...


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Stack samples into ``image`` (B, C, H, W), ``caption``, ``key`` and ``notes`` (lists), ``lowres`` if there, and
    every field under its name: pictures (B, C, h, w), numbers (B,) int64, and sequences (B, L, D), padded to the
    longest, with ``NAME_mask`` (B, L) bool.

    Raises:
        ValueError: shapes differ, or only some of the samples have a low-res picture or a field.
    """
    batch: dict[str, Any] = {
        "key": [sample.key for sample in samples],
        "image": _stack([sample.image for sample in samples], "image"),
        "caption": [sample.caption for sample in samples],
        "notes": [note for sample in samples for note in sample.notes],
    }
    parts = [{**({} if sample.lowres is None else {"lowres": sample.lowres}), **sample.fields} for sample in samples]
    for name in dict.fromkeys(name for part in parts for name in part):
        missing = [sample.key for sample, part in zip(samples, parts, strict=True) if name not in part]
        if missing:
            raise ValueError(
                f"sample {missing[0]!r} has no {name} but others of its batch have; give it to all or to none"
            )
        batch.update(_batched([part[name] for part in parts], name))
    return batch


def _batched(values: Sequence[Value], name: str) -> dict[str, Tensor]:
    tensors = [torch.as_tensor(value) for value in values]
    if tensors[0].ndim != 2:
        return {name: _stack(tensors, name)}
    padded = pad_sequence(tensors, batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in tensors])
    return {name: padded, f"{name}_mask": torch.arange(padded.shape[1]) < lengths[:, None]}


def _stack(tensors: Sequence[Tensor], name: str) -> Tensor:
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise ValueError(f"{name} has the shapes {shapes} in one batch; expected one shape: crop or resize them alike")
    return torch.stack(list(tensors))
