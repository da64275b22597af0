"""Words to embeddings in training: from the encoder as it is told to read, from a cache, or as they come."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen.cascade.training.config.run import RunConfig, StageGridConfig, StageTrainConfig, TextConfig
from imagen.cascade.training.inputs.texts import Texts, with_cache
from imagen.conditions.text import Words
from imagen.data.config import DataConfig
from imagen.errors import ConfigError
from imagen.text.cache.build import Encoding, build_cache
from imagen.text.encoder import encode, load_text_encoder
from tests.factories import WIDTH, seeded

CPU = torch.device("cpu")
CAPTIONS = ["a red circle", "two blue star"]
LONG = "a small green circle " * 3  # 13 tokens with the end


def run(**text: Any) -> RunConfig:
    return RunConfig("run", unet={"text_dim": WIDTH}, text=TextConfig(**{"max_length": 8, **text}))


@pytest.fixture(scope="module")
def cache(t5: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cache")
    build_cache(CAPTIONS, folder, Encoding(t5, max_length=8), 1, 8, say=lambda _: None)
    return str(folder)


def test_words_that_come_encoded_are_taken_as_they_are_and_nothing_is_loaded() -> None:
    texts = Texts(RunConfig("run", unet={"text_dim": WIDTH}, data=DataConfig("folder", "p", embedding="npy"))).load(CPU)
    given = torch.randn(2, 3, WIDTH, generator=seeded()), torch.ones(2, 3).bool()
    assert texts.encoder is None
    assert texts.cache is None
    for found, expected in zip(texts(Words(["a", "b"], *given)), given, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("padding", ["masked", "visible"])
def test_a_caption_is_what_the_encoder_makes_of_it_as_it_is_told_to_read(t5: str, padding: Any) -> None:
    texts = Texts(run(encoder=t5, padding=padding, lowercase=True)).load(CPU)
    found = texts(Words([" A Red CIRCLE ", "two"]))
    expected = encode(*load_text_encoder(t5), ["a red circle", "two"], 8, padding=padding)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert found[0].shape[1] == (8 if padding == "visible" else expected[1].sum(dim=1).max())
    assert not found[0].requires_grad


@pytest.mark.parametrize("unconditional", ["zero", "empty"])
def test_the_text_of_no_caption_is_a_zero_or_the_encoding_of_an_empty_one(t5: str, unconditional: Any) -> None:
    texts = Texts(run(encoder=t5, unconditional=unconditional)).load(CPU)
    text, mask = texts.null(3, WIDTH)
    assert len(text) == len(mask) == 3
    assert mask.all()
    if unconditional == "empty":
        assert torch.equal(text, encode(*load_text_encoder(t5), [""] * 3, 8)[0])
    else:
        assert text.tolist() == torch.zeros(3, 1, WIDTH).tolist()


def test_a_cache_gives_what_the_encoder_gave_and_its_prompts_must_be_there(t5: str, cache: str) -> None:
    grid = StageGridConfig(prompts=(*CAPTIONS, "an owl", "two owls"))
    config = replace(run(cache=cache), grid=replace(grid, prompts=tuple(CAPTIONS)))
    texts = Texts(config).load(CPU)
    assert texts.encoder is None
    for found, expected in zip(texts(Words(CAPTIONS)), encode(*load_text_encoder(t5), CAPTIONS, 8), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ConfigError, match=r"lacks the prompt 'an owl' of grid.prompts: give the python -m imagen\.text"
    ):
        Texts(replace(config, grid=grid)).load(CPU)
    Texts(replace(config, grid=replace(grid, every=0))).load(CPU)  # none is drawn


@pytest.mark.parametrize("kind", ["shapes", "folder"])
def test_a_caption_that_the_cache_lacks_is_named_with_the_command_that_adds_it(cache: str, kind: Any) -> None:
    data = DataConfig(kind, None if kind == "shapes" else "p")
    config = replace(run(cache=cache), data=data, train=StageTrainConfig(steps=7, batch_size=3))
    more = " --num 21" if kind == "shapes" else ""
    told = f"lacks the caption 'an owl': add it with python -m imagen.text.cache --config run/config.yaml{more}$"
    with pytest.raises(ConfigError, match=told):
        Texts(config).load(CPU)(Words(["a red circle", "an owl"]))


@pytest.mark.parametrize("width", [None, WIDTH, 2 * WIDTH])
@pytest.mark.parametrize("source", ["encoder", "cache"])
def test_the_width_is_the_network_s_where_it_says_one(t5: str, cache: str, source: str, width: int | None) -> None:
    config = replace(run(**{source: t5 if source == "encoder" else cache}), unet={"text_dim": width})
    if width in (None, WIDTH):
        Texts(config).load(CPU)
    else:
        with pytest.raises(ConfigError, match="unet.text_dim 32 differs from the encoder's width 16"):
            Texts(config).load(CPU)


def told(texts: Texts, *captions: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        texts(Words(captions))
    return [str(one.message) for one in caught]


def test_the_first_caption_that_is_cut_is_told_and_further_ones_are_not(t5: str) -> None:
    texts = Texts(run(encoder=t5)).load(CPU)
    length = len(load_text_encoder(t5)[0](CAPTIONS[0]).input_ids)
    assert told(texts, *CAPTIONS) == []
    assert told(Texts(run(encoder=t5, max_length=length)).load(CPU), CAPTIONS[0]) == [], "as long as it may be"
    (said,) = told(texts, "a red circle", LONG)
    assert said.startswith(f"a caption of {len(load_text_encoder(t5)[0](LONG).input_ids)} tokens is cut at ")
    assert said.endswith(f"text.max_length 8: {LONG[:60]!r}...; further ones are cut without a word")
    assert told(texts, LONG) == []
    (cut,) = told(Texts(run(encoder=t5, max_length=length - 1)).load(CPU), CAPTIONS[0])
    assert f"a caption of {length} tokens is cut at text.max_length {length - 1}" in cut


# --- what a configuration says of its cache --------------------------------------------------------------------------


def test_without_a_cache_nothing_changes_and_with_one_its_encoder_is_named(t5: str, cache: str, tmp_path: Path) -> None:
    for text in ({}, {"encoder": t5}, {"encoder": "/nowhere/t5"}):
        assert with_cache(run(**text)) == run(**text)
    assert with_cache(run(cache=cache)) == run(cache=cache, encoder=t5)
    assert with_cache(run(cache=cache, encoder=t5)) == run(cache=cache, encoder=t5)


@pytest.mark.parametrize(("text", "message"), [
    ({"max_length": 9}, "text.max_length 9 differs from what text.cache .* set text.max_length 8"),
    ({"dtype": "bfloat16"}, "text.dtype bfloat16 differs .* set text.dtype float32"),
    ({"encoder": "some/other"}, "text.encoder 'some/other' is not on this machine, and text.cache .* null to train"),
    ({"cache": "/nowhere"}, "^text.cache: there is no text cache in '/nowhere'"),
])  # fmt: skip
def test_a_cache_of_something_else_is_refused(cache: str, text: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_cache(run(**{"cache": cache, **text}))


@pytest.mark.parametrize("padding", ["masked", "visible"])
def test_tokens_made_where_pictures_are_loaded_are_those_made_here(t5: str, padding: Any) -> None:
    texts = Texts(run(encoder=t5, padding=padding, lowercase=True)).load(CPU)
    raw = texts.tokenized({"caption": ["A Red CIRCLE ", LONG]})
    assert raw["caption"] == ["A Red CIRCLE ", LONG]
    assert {*raw} == {"caption", "tokens"}
    here = texts(Words(raw["caption"]))
    tokenizer, texts.tokenizer = texts.tokenizer, None  # not needed any more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one, other in zip(texts(Words.of(raw)), here, strict=True):
            assert torch.equal(one, other)
    texts.tokenizer = tokenizer
    assert torch.equal(texts(Words.of(raw)[1:])[0], texts(Words([LONG]))[0]), "a part has tokens of its own"


def test_no_tokens_are_made_where_nothing_reads_them(t5: str, cache: str) -> None:
    raw: dict[str, Any] = {"caption": CAPTIONS}
    assert Texts(run(cache=cache)).load(CPU).tokenized(raw) is raw
    encoded = {**raw, "embedding": torch.zeros(2, 1, WIDTH)}
    assert Texts(run(encoder=t5)).load(CPU).tokenized(encoded) is encoded


def test_captions_that_are_cut_are_told_of_with_tokens_too(t5: str) -> None:
    texts = Texts(run(encoder=t5)).load(CPU)
    with pytest.warns(UserWarning, match=r"a caption of 13 tokens is cut at text\.max_length 8"):
        texts(Words.of(texts.tokenized({"caption": ["two", LONG]})))
