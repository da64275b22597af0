"""What a dropped caption is, and how texts of different length become one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from imagen.conditions.condition import Draw
from imagen.conditions.text import Captions, Words, cat_text, drop_text, null_text
from imagen.data.fields import Encoded
from imagen.data.prepare import Want


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_dropped_text_is_one_zero_token_whatever_its_length(dtype: torch.dtype) -> None:
    text = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).to(dtype)
    before = text.clone(), mask.clone()
    out, out_mask = drop_text(text, mask, torch.tensor([True, True, False]))
    one = torch.tensor([1, 0, 0, 0, 0]).to(dtype)
    for row in (0, 1):
        assert torch.equal(out[row], torch.zeros(5, 2))
        assert torch.equal(out_mask[row], one)
    assert torch.equal(out[2], text[2])
    assert torch.equal(out_mask[2], mask[2])
    assert out_mask.dtype == dtype
    assert torch.equal(text, before[0])
    assert torch.equal(mask, before[1])


def test_training_and_sampling_drop_the_same_text() -> None:
    """What attention may see of a dropped row is what null_text holds."""
    text, mask = drop_text(torch.ones(1, 4, 3), torch.ones(1, 4, dtype=torch.bool), torch.tensor([True]))
    null, null_mask = null_text(1, 3)
    assert torch.equal(text[mask], null[null_mask])
    assert null.shape == (1, 1, 3)
    assert null_mask.dtype == torch.bool


def test_a_text_with_nan_is_dropped_too() -> None:
    text, _ = drop_text(torch.full((1, 2, 2), float("nan")), torch.ones(1, 2), torch.tensor([True]))
    assert torch.equal(text, torch.zeros(1, 2, 2))


def test_halves_of_different_length_are_stacked() -> None:
    text, mask = torch.randn(2, 4, 3), torch.ones(2, 4, dtype=torch.int64)
    both, both_mask = cat_text(null_text(2, 3), (text, mask))
    assert both.shape == (4, 4, 3)
    assert torch.equal(both[2:], text)
    assert both_mask[:2].tolist() == [[True, False, False, False]] * 2
    assert both_mask[2:].all()
    null, null_mask = null_text(2, 3)
    again, again_mask = cat_text((text, mask), (null.double(), null_mask))
    assert again.dtype == torch.float32
    assert again_mask.dtype == torch.int64


def test_no_text_lies_where_it_is_asked_for() -> None:
    assert all(part.device.type == "meta" for part in null_text(1, 3, torch.device("meta")))


def test_rows_of_texts_keep_what_belongs_to_them() -> None:
    numbers, mask = torch.arange(12.0).view(3, 2, 2), torch.tensor([[1, 0], [1, 1], [1, 0]])
    some = Words.of({"caption": ["a", "b", "c"], "embedding": numbers, "embedding_mask": mask})[1:]
    assert (len(some), some.captions) == (2, ["b", "c"])
    assert torch.equal(some.embedding, numbers[1:])  # type: ignore[arg-type]
    assert torch.equal(some.mask, mask[1:])  # type: ignore[arg-type]
    assert Words.of({"caption": ["a", "b", "c"]})[:2] == Words(["a", "b"])


def test_the_shorter_of_two_texts_is_padded_behind() -> None:
    short, long = (torch.ones(1, 2, 3), torch.ones(1, 2)), (torch.full((2, 4, 3), 2.0), torch.ones(2, 4))
    for first, second, order in ((short, long, [0, 1, 2]), (long, short, [2, 0, 1])):
        both, mask = cat_text(first, second)
        assert both[order, :, 0].tolist() == [[1, 1, 0, 0], [2, 2, 2, 2], [2, 2, 2, 2]]
        assert mask[order].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def words(captions: Sequence[str]) -> dict[str, Any]:
    return {"caption": list(captions)}


def read(given: Words) -> tuple[Tensor, Tensor]:
    """As many tokens as letters, and one for the end; a token is the number of letters."""
    longest = max(len(caption) for caption in given.captions) + 1
    mask = torch.tensor([[place <= len(caption) for place in range(longest)] for caption in given.captions])
    numbers = torch.tensor([[[float(1 + len(caption))] * 2] * longest for caption in given.captions])
    return numbers, mask


def test_captions_are_dropped_where_the_draw_says_so() -> None:
    condition, drop = Captions(read), torch.tensor([False, True, False])
    image = torch.zeros(3, 3, 2, 2, dtype=torch.float64)
    part = condition.batch(words(["a", "abc", "ab"]), image, drop)
    assert part[0].dtype == torch.float64
    for dropped, lengths in ((drop, [2, 1, 3]), (~drop, [1, 4, 1])):  # a part serves any draw
        given = condition.inputs(part, Draw(dropped, torch.zeros(3), lambda *_: image)).values
        assert given["text_mask"].sum(dim=1).tolist() == lengths
        assert not given["text"][dropped].any()
        assert torch.equal(given["text"][~dropped], part[0][~dropped])


def test_an_empty_caption_is_read_in_place_of_a_dropped_one() -> None:
    condition, drop = Captions(read, null="empty"), torch.tensor([False, True])
    part = condition.batch(words(["a", "abc"]), torch.zeros(2, 3, 2, 2), drop)
    given = condition.inputs(part, Draw(drop, torch.zeros(2), lambda *_: torch.zeros(2))).values
    assert given["text_mask"].sum(dim=1).tolist() == [2, 1]
    assert given["text"][1, 0].tolist() == [1.0, 1.0]


def test_a_source_is_asked_for_captions_or_what_was_made_of_them() -> None:
    want, kind = Want(8, captions="optional"), Encoded(4, 2)
    assert Captions(read).wants(want) == Want(8, captions="required")
    assert Captions(read, required=False).wants(Want(8)) == Want(8, captions="required")  # somebody else needs them
    assert Captions(read, required=False, encoded=kind).wants(want) == Want(
        8, captions="optional", fields={"embedding": kind}
    )
