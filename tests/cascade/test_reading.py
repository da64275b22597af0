"""The texts of a call: prompts or embeddings, what stands in the other half, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from imagen.cascade.text import PromptReader, as_list, check_embeds, pair
from imagen.text.encoder import encode, token_count
from imagen.text.reading import TextDefaults
from tests.factories import WIDTH, tiny_text_encoder, tiny_tokenizer

PROMPTS = ["A red circle", "two blue star a small green circle"]


def reader(max_length: int = 20, **changes: Any) -> PromptReader:
    parts = {"tokenizer": tiny_tokenizer(), "text_encoder": tiny_text_encoder(), "defaults": TextDefaults()}
    return PromptReader(**{**parts, "max_length": max_length, **changes})


@pytest.mark.parametrize("padding", ["masked", "visible"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_prompts_are_read_as_the_model_was_trained_to(padding: Any, lowercase: bool) -> None:
    made = reader(defaults=TextDefaults(padding=padding, lowercase=lowercase)).encode(PROMPTS)
    read = [prompt.lower() for prompt in PROMPTS] if lowercase else PROMPTS
    expected = encode(tiny_tokenizer(), tiny_text_encoder(), read, 20, padding=padding)
    for ours, theirs in zip(made, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert (made[0].shape[1] == 20) is (padding == "visible")


def test_a_prompt_may_have_as_many_tokens_as_the_model_reads_and_no_more() -> None:
    length = token_count(tiny_tokenizer(), PROMPTS[1])
    assert reader(length).encode(PROMPTS)[0].shape[1] == length
    with pytest.raises(
        ValueError, match=rf"prompt '{PROMPTS[1]}' has {length} tokens and this model reads {length - 1};"
    ):
        reader(length - 1).encode(["a", *PROMPTS])


def test_a_long_prompt_is_shown_by_its_start() -> None:
    whole = "a" * 60
    for prompt, shown in ((whole, whole), (f"{whole}b", f"{'a' * 57}...")):
        with pytest.raises(ValueError, match=f"^prompt '{re.escape(shown)}' has"):
            reader(2).check(prompt)


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_text_is_given_once_and_a_mask_with_its_embeddings(name: str) -> None:
    embeds, mask, read = torch.ones(1, 2, WIDTH), torch.ones(1, 2), reader().read
    assert read(name, None, None, None) is None
    for given, message in (
        (("a", embeds, None), f"^{name} and {name}_embeds are both given"),
        ((None, None, mask), f"^a mask is given without {name}_embeds, which it belongs to; a {name} brings its own"),
        (("a", None, mask), f"^a mask is given without {name}_embeds"),
        (([], None, None), rf"^{name} is \[\]; expected a string or a non-empty list of strings"),
        ((None, embeds[0], None), rf"^{name}_embeds has shape \(2, {WIDTH}\); expected a tensor"),
        ((None, [[1.0]], None), f"^{name}_embeds has type list; expected a tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            read(name, *given)


@pytest.mark.parametrize("wrong", [3, b"a", [], ["a", 3], ["a", None], {"a": 1}])
def test_prompts_are_strings(wrong: Any) -> None:
    with pytest.raises(ValueError, match="^x is .*; expected a string or a non-empty list of strings"):
        as_list("x", wrong)
    assert as_list("x", "ab") == ["ab"]
    assert as_list("x", ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_embeddings_are_in_at_least_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    given = torch.rand(2, 3, 4).to(dtype)
    embeds, mask = check_embeds("x", given, None)
    assert embeds.dtype == expected
    assert torch.equal(embeds, given.to(expected))
    assert torch.equal(mask, torch.ones(2, 3, dtype=torch.bool)), "all tokens are real"


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_mask_of_any_numbers_is_boolean(dtype: torch.dtype) -> None:
    given = torch.tensor([[1, 0, 0], [0, 0, 1]])
    mask = check_embeds("x", torch.ones(2, 3, 4), given.to(dtype))[1]
    assert torch.equal(mask, given == 1)
    with pytest.raises(ValueError, match="x has a row without a real token: its mask is 0 everywhere"):
        check_embeds("x", torch.ones(3, 3, 4), torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0]]).to(dtype))


@pytest.mark.parametrize("shape", [(0, 2, 4), (1, 0, 4), (1, 2, 0), (1, 2), (1, 2, 4, 1)])
def test_embeddings_have_prompts_tokens_and_a_width(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"x has shape {shape}; expected a tensor (prompts, tokens, width)")):
        check_embeds("x", torch.zeros(shape), None)


def test_a_mask_lies_where_its_embeddings_do_and_those_of_a_call_on_the_cpu() -> None:
    """There a network looks which columns to leave out, and waits for no device."""
    away = torch.zeros(1, 2, 4, device="meta")
    for mask in (None, torch.ones(1, 2)):
        assert check_embeds("x", away, mask)[1].device.type == "meta"
    here = (torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool))
    text = pair(here, here, 1, torch.device("meta"))
    assert [part.device.type for half in (text.prompt, text.negative) for part in half] == ["meta", "cpu"] * 2


def numbered(count: int, tokens: int, width: int = 4) -> tuple[Tensor, Tensor]:
    """Texts that say their number, the first token of each alone real."""
    embeds = torch.arange(count, dtype=torch.float32)[:, None, None].expand(count, tokens, width)
    return embeds, torch.arange(tokens).expand(count, tokens) == 0


@pytest.mark.parametrize(("prompts", "others", "count"), [(1, 1, 1), (1, 3, 3), (3, 1, 3), (3, 3, 3), (1, 1, 3)])
def test_one_prompt_serves_all_and_other_halves_are_one_or_one_for_each(prompts: int, others: int, count: int) -> None:
    text = pair(numbered(prompts, 2), numbered(others, 5), count, torch.device("cpu"))
    assert len(text) == count
    assert text.prompt[0][:, 0, 0].tolist() == ([0.0] * 3 if prompts == 1 else [0.0, 1.0, 2.0])[:count]
    assert text.prompt[1].shape == (count, 2)
    assert text.negative[0].shape == (others, 5, 4)
    assert text.negative[1].shape == (others, 5)


def test_another_half_of_another_number_or_width_is_refused() -> None:
    device = torch.device("cpu")
    with pytest.raises(ValueError, match="2 negative prompts for 3 prompts; give one, or one for each"):
        pair(numbered(3, 2), numbered(2, 2), 3, device)
    with pytest.raises(ValueError, match="the negative text has width 5, the prompt 4; encode both alike"):
        pair(numbered(1, 2), numbered(1, 2, width=5), 1, device)


@pytest.mark.parametrize("missing", ["tokenizer", "text_encoder"])
def test_both_tokenizer_and_encoder_are_needed_to_read(missing: str) -> None:
    without = reader(**{missing: None})
    with pytest.raises(ValueError, match="no tokenizer and text_encoder: load them, or pass prompt_embeds"):
        without.check("a")
    assert torch.equal(without.null(5)[0], torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match="the encoding of an empty prompt and there is no text_encoder: load it, pass"):
        without._replace(defaults=TextDefaults(null="empty")).null(5)


def test_the_null_is_the_encoding_of_an_empty_prompt_where_the_model_says_so() -> None:
    read = reader(defaults=TextDefaults(null="empty", padding="visible"))
    for ours, theirs in zip(read.null(WIDTH), read.encode(""), strict=True):
        assert torch.equal(ours, theirs)


def test_characters_that_the_encoder_does_not_know_are_told_once_for_each_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader().read("prompt", ["a red circle", "a 山 and 🙂🙂"], None, None)
    (record,) = caplog.records
    assert record.message == "prompt 'a 山 and 🙂🙂': the text encoder does not know '山🙂', and reads it as <unk>"
