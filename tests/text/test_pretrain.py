"""Span corruption loses nothing, and the small T5 learns, resumes and loads back."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from imagen.text.encoder import encode, load_text_encoder, token_count
from imagen.text.pretrain import (
    PretrainConfig,
    _batch,
    _learning_rate_factor,
    _random_partition,
    build,
    corrupt_spans,
    hide_continuation,
    pretrain,
    train_tokenizer,
)

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


@pytest.mark.parametrize(
    ("n", "density", "mean_span", "sentinels", "hidden", "spans"),
    [
        (20, 0.5, 2.0, 100, 10, 5),
        (20, 0.5, 2.0, 3, 10, 3),  # no more than there are sentinels
        (20, 0.5, 1.0, 100, 10, 10),
        (20, 0.9, 1.0, 100, 18, 3),  # no more than the tokens left can part
        (20, 0.5, 100.0, 100, 10, 1),
        (20, 0.01, 3.0, 100, 1, 1),  # at least one
        (2, 0.99, 1.0, 100, 1, 1),  # and not all
    ],
)
def test_as_much_is_hidden_in_as_many_spans_as_asked_for(n, density, mean_span, sentinels, hidden, spans):
    ends = set()
    for seed in range(60):
        ids = list(range(n))
        source, target = corrupt_spans(
            ids, np.random.default_rng(seed), range(1000, 1000 + sentinels), density, mean_span
        )
        used = [token for token in source if token >= 1000]
        assert used == [token for token in target if token >= 1000] == list(range(1000, 1000 + spans))
        assert len(target) == spans + hidden
        assert len(source) == spans + n - hidden
        ends |= {source[0] >= 1000, ("last", source[-1] >= 1000)}
    if n - hidden > spans:
        assert ends == {True, False, ("last", True), ("last", False)}, "the text may start or end with a hidden span"


def test_every_way_of_parting_is_as_likely():
    rng = np.random.default_rng(0)
    counts = Counter(tuple(_random_partition(5, 3, rng)) for _ in range(1200))
    assert {*counts} == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert min(counts.values()) > 140
    assert _random_partition(4, 1, rng) == [4]
    assert _random_partition(3, 3, rng) == [1, 1, 1]


def test_a_batch_is_whole_documents_with_what_is_hidden_as_labels(tokenizer):
    texts = [*TEXTS, "a. b", "two words", "a " * 150]
    config = replace(
        TINY, batch_size=6, noise_density=0.4, mean_span=1.0, continuation_share=0.5, seed=3, max_length=150
    )
    asked = []
    batch = _batch(lambda index: asked.append(index) or texts[index % 6], tokenizer, config, 2)
    assert asked == list(range(12, 18))
    first, eos = tokenizer.convert_tokens_to_ids("<extra_id_0>"), tokenizer.eos_token_id
    last = tokenizer.convert_tokens_to_ids("<extra_id_99>")
    for row in range(6):
        real = batch["attention_mask"][row].bool()
        source = batch["input_ids"][row][real].tolist()
        assert (batch["input_ids"][row][~real] == 0).all()
        known = batch["labels"][row] != -100
        target = batch["labels"][row][known].tolist()
        assert real.sum() == int(real.nonzero().max()) + 1, "what is padded stands behind"
        assert known.sum() == int(known.nonzero().max()) + 1
        assert source.pop() == target.pop() == eos
        hidden = {}
        for token in target:
            if last <= token <= first:  # the sentinels count down
                spot = hidden.setdefault(token, [])
            else:
                spot.append(token)
        assert [*hidden] == [first - number for number in range(len(hidden))]
        rebuilt = [piece for token in source for piece in hidden.get(token, [token])]
        assert rebuilt == tokenizer(texts[row], add_special_tokens=False).input_ids
    assert len(hidden) == 60, "of 150 tokens, each by itself: there are as many sentinels"
    again, other = (
        _batch(lambda index: texts[index % 6], tokenizer, one, 2) for one in (config, replace(config, seed=4))
    )
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert not torch.equal(batch["input_ids"], other["input_ids"]) or not torch.equal(batch["labels"], other["labels"])


def test_the_model_is_of_the_sizes_asked_for_and_as_large_as_its_vocabulary(tokenizer):
    sizes = {"d_model": 12, "d_ff": 20, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 5}
    first, again, other = (build(tokenizer, PretrainConfig(**sizes, seed=seed)) for seed in (1, 1, 2))
    assert {name: getattr(first.config, name) for name in sizes} == sizes
    assert first.shared.weight.shape == (len(tokenizer), 12)
    assert first.lm_head.weight is first.shared.weight
    assert (len(first.encoder.block), len(first.decoder.block)) == (2, 3)
    block = first.encoder.block[1].layer
    assert block[0].SelfAttention.q.weight.shape == (4 * 5, 12)
    assert block[1].DenseReluDense.wi_0.weight.shape == (20, 12), "gated"
    assert first.config.dropout_rate == 0
    assert first.config.decoder_start_token_id == 0
    weights = [model.state_dict().values() for model in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))
    assert all(parameter.requires_grad for parameter in first.parameters())


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"),
    [
        (4, 10, [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (0, 4, [1, 3 / 4, 2 / 4, 1 / 4]),
        (1, 3, [1, 1, 1 / 2]),
        (9, 3, [1 / 9, 2 / 9, 1 / 9 * 3]),  # never warm
    ],
)
def test_the_learning_rate_warms_up_and_then_falls_to_zero(warmup, steps, expected):
    config = replace(TINY, warmup=warmup, steps=steps)
    assert [min(_learning_rate_factor(step, config), expected[step]) for step in range(steps)] == pytest.approx(
        expected
    )
    if warmup <= steps:
        assert [_learning_rate_factor(step, config) for step in range(steps)] == pytest.approx(expected)


def loss_of(model, batch):
    logits = model(**batch).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100), logits


def test_a_run_is_the_optimizer_s_steps(tokenizer, tmp_path):
    """By hand: each step with its own gradient, cut to a norm of 1, at its own rate."""
    config = replace(TINY, steps=4, warmup=2, learning_rate=0.05, checkpoint_every=3)
    out = pretrain(document, tokenizer, config, tmp_path)
    model = build(tokenizer, config)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=1.0)
    norms = []
    for step, factor in enumerate((0.5, 1.0, 1.0, 0.5)):
        loss, _ = loss_of(model, _batch(document, tokenizer, config, step))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient * min(1.0, 1 / (norms[-1] + 1e-6))
        optimizer.param_groups[0]["lr"] = 0.05 * factor
        optimizer.step()
    assert min(norms) > 1, "there is something to cut"
    saved = torch.load(out / "state.pt", weights_only=True)
    assert saved["step"] == 4
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved["model"][name], value, atol=1e-4, rtol=1e-3)
    assert sorted(path.name for path in out.iterdir()) == ["metrics.jsonl", "state.pt", "text_encoder", "tokenizer"]
    encoder = load_text_encoder(out)[1]
    for name, value in encoder.encoder.state_dict().items():
        assert torch.equal(value, saved["model"][f"encoder.{name}"])


def test_every_twentieth_step_logs_the_loss_and_the_share_of_tokens_that_are_right(tokenizer, tmp_path):
    def document(index):  # of other lengths, so that targets are padded
        return TEXTS[index % len(TEXTS)] * (1 + 3 * (index % 4 == 0))

    config = replace(TINY, steps=19, learning_rate=0.05)
    pretrain(document, tokenizer, config, tmp_path)
    model = build(tokenizer, config)
    model.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)["model"])
    assert not (tmp_path / "metrics.jsonl").read_text()
    pretrain(document, tokenizer, replace(config, steps=21), tmp_path)
    (logged,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    batch = _batch(document, tokenizer, config, 19)
    assert (batch["labels"] == -100).any(), "what is padding is neither right nor wrong"
    with torch.no_grad():
        loss, logits = loss_of(model, batch)
    pairs = zip(logits.argmax(-1).flatten().tolist(), batch["labels"].flatten().tolist(), strict=True)
    right = [guess == label for guess, label in pairs if label != -100]
    assert 0 < np.mean(right) < 1
    assert logged.pop("seconds_per_step") > 0
    assert logged == {"step": 20, "loss": pytest.approx(float(loss), abs=1e-4), "accuracy": round(np.mean(right), 4)}


@pytest.mark.parametrize(
    ("legal", "wrong"),
    [
        *(
            ({name: 1}, {name: 0})
            for name in ("d_model", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "d_kv")
        ),
        *(({name: 1}, {name: 0}) for name in ("max_length", "batch_size", "checkpoint_every")),
        *(({name: 0}, {name: -1}) for name in ("steps", "warmup", "seed")),
        ({"noise_density": 0.001}, {"noise_density": 0}),
        ({"noise_density": 0.999}, {"noise_density": 1}),
        ({"continuation_share": 0}, {"continuation_share": -0.1}),
        ({"continuation_share": 1}, {"continuation_share": 1.1}),
        ({"mean_span": 1}, {"mean_span": 0.99}),
        ({"learning_rate": 1e-9}, {"learning_rate": 0}),
        ({"learning_rate": 1e9}, {"learning_rate": float("inf")}),
        ({"init_from": None}, {"init_from": Path("/nowhere")}),
    ],
)
def test_both_sides_of_every_bound(legal, wrong):
    assert replace(TINY, **legal)
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} (is )?'?{value}"):
        replace(TINY, **wrong)


def test_a_single_token_is_hidden_whole():
    assert corrupt_spans([7], np.random.default_rng(0), [1000, 999], 0.15, 3.0) == ([1000], [1000, 7])


def test_a_document_is_cut(tokenizer):
    config = replace(TINY, batch_size=1, max_length=5, noise_density=0.2, mean_span=1.0)
    batch = _batch(lambda _: "a red circle above a blue square", tokenizer, config, 0)
    assert int(batch["attention_mask"].sum()) == 4 + 1 + 1, "four seen, one sentinel for what is hidden, the end"
