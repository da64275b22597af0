"""Span corruption loses nothing, and the small T5 learns, resumes and loads back."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from imagen.text.encoder import encode, load_text_encoder, token_count
from imagen.text.pretrain import PretrainConfig, _batch, corrupt_spans, hide_continuation, pretrain, train_tokenizer

TEXTS = ["a red circle above a blue square", "three green stars", "a small yellow ring on a navy background"]
TINY = PretrainConfig(
    d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8, steps=4, batch_size=4, warmup=1, checkpoint_every=2
)


def document(index: int) -> str:
    return TEXTS[index % len(TEXTS)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 20)


@pytest.mark.parametrize("density", [0.15, 0.3, 0.9])
def test_sources_and_targets_put_together_give_the_text_back(density):
    sentinels = list(range(1000, 1100))
    for seed in range(300):
        rng = np.random.default_rng(seed)
        ids = rng.integers(3, 500, size=int(rng.integers(2, 40))).tolist()
        source, target = corrupt_spans(ids, rng, sentinels, density, mean_span=2.0)
        hidden: dict[int, list[int]] = {}
        for token in target:
            if token >= 1000:
                hidden[token] = []
                last = token
            else:
                hidden[last].append(token)
        rebuilt = [piece for token in source for piece in (hidden[token] if token >= 1000 else [token])]
        assert rebuilt == ids
        assert all(hidden.values())
        assert sum(map(len, hidden.values())) == min(max(round(len(ids) * density), 1), len(ids) - 1)


def test_every_position_gets_hidden():
    seen = set()
    for seed in range(400):
        source, target = corrupt_spans(range(3, 13), np.random.default_rng(seed), range(1000, 1100), 0.2, 1.5)
        seen |= {token for token in target if token < 1000}
        assert len(source) + len(target) == 10 + 2 * sum(token >= 1000 for token in target)
    assert seen == set(range(3, 13))


def test_a_continuation_is_all_that_follows_the_first_full_stop():
    assert hide_continuation([5, 6, 9, 7, 9, 8], sentinel=1000, stop=9) == ([5, 6, 9, 1000], [1000, 7, 9, 8])
    assert hide_continuation([5, 6, 9], sentinel=1000, stop=9) is None
    assert hide_continuation([5, 6], sentinel=1000, stop=9) is None


def test_words_are_pieces_and_any_word_can_be_spelt(tokenizer):
    assert token_count(tokenizer, "a RED circle above") == 5
    ids = tokenizer("a zebra, quickly").input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a zebra, quickly"


@pytest.mark.parametrize("started", [False, True], ids=["new", "from another encoder"])
def test_resume_equals_the_uninterrupted_run(tokenizer, tmp_path, started):
    config = replace(TINY, init_from=pretrain(document, tokenizer, TINY, tmp_path / "other") if started else None)
    whole = pretrain(document, tokenizer, config, tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stops(index: int) -> str:
        if index == 3 * TINY.batch_size:
            raise Stopped
        return document(index)

    with pytest.raises(Stopped):
        pretrain(stops, tokenizer, config, tmp_path / "cut")
    log = tmp_path / "cut" / "metrics.jsonl"
    log.write_text('{"step": 2}\n{"step": 3}\n', encoding="utf-8")  # step 3 was logged after the checkpoint of step 2
    resumed = pretrain(document, tokenizer, config, tmp_path / "cut")
    assert log.read_text(encoding="utf-8") == '{"step": 2}\n'
    for a, b in zip(
        load_text_encoder(whole)[1].state_dict().values(),
        load_text_encoder(resumed)[1].state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_saved_encoder_gives_what_the_trained_one_gave(tokenizer, tmp_path):
    out = pretrain(document, tokenizer, TINY, tmp_path)
    loaded_tokenizer, encoder = load_text_encoder(out)
    saved = torch.load(out / "state.pt", weights_only=True)["model"]
    assert torch.equal(encoder.shared.weight, saved["shared.weight"])
    hidden, mask = encode(loaded_tokenizer, encoder, TEXTS)
    assert hidden.shape == (3, 9, 16)
    assert mask.sum(1).tolist() == [8, 4, 9]


def test_starts_from_a_saved_encoder_and_refuses_one_of_other_sizes(tokenizer, tmp_path):
    first = pretrain(document, tokenizer, TINY, tmp_path / "first")
    second = pretrain(document, tokenizer, replace(TINY, init_from=first, seed=1, steps=0), tmp_path / "second")
    for a, b in zip(
        load_text_encoder(first)[1].state_dict().values(),
        load_text_encoder(second)[1].state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"init_from .*first' holds an encoder of other sizes.*size mismatch"):
        pretrain(document, tokenizer, replace(TINY, init_from=first, d_model=32), tmp_path / "third")


def test_a_decoder_without_feed_forward_never_gets_one(tokenizer, tmp_path):
    pretrain(document, tokenizer, replace(TINY, decoder_feed_forward=False), tmp_path)
    weights = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    outs = {name: value for name, value in weights.items() if name.endswith("DenseReluDense.wo.weight")}
    assert {name.split(".")[0]: bool(value.any()) for name, value in outs.items()} == {
        "encoder": True,
        "decoder": False,
    }


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_says_how_often_all_that_follows_is_hidden(tokenizer, share):
    text, config = "a red circle. three green stars", replace(TINY, continuation_share=share, noise_density=0.1)
    batch = _batch(lambda _: text, tokenizer, config, 0)
    whole = tokenizer("three green stars").input_ids[:-1]
    hidden = [row[1 : 1 + len(whole)] == whole for row in batch["labels"].tolist()]
    assert all(hidden) if share else not any(hidden)
