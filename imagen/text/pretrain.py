"""Pre-train a small T5 with T5's own objective, span corruption (Raffel et al. 2020, section 3.1.4).

For languages far from English prose (the shipped demo's captions, gene names, report codes), and for those who have no
hub to fetch a large one from. The encoder is saved and
frozen; the decoder, kept shallow so that the understanding has to happen in the encoder, is thrown away.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer

from imagen.checks import check_int, check_number
from imagen.disk import MetricsFile, filling
from imagen.errors import require
from imagen.text.folders import STATE, component_folders

SPELLING = "abcdefghijklmnopqrstuvwxyz0123456789.,;:-'!?()"  # so that any lower-case word can at least be spelt
# ... and so that names with accents, prices and units can; whatever else the captions have is taken from them.
LATIN = "".join(c for c in map(chr, range(33, 384)) if c.isprintable() and c == normalize("NFKC", c).casefold())
WIDE_SPELLING = (
    f"{LATIN}ß\u2044\u2013\u2014\u2018\u2019\u201c\u201d\u20ac"  # a fraction's stroke, dashes, quotes, the euro
)
MAX_WORDS = 8000  # that are one piece each; rarer ones are spelt
FREE = ("steps", "checkpoint_every")  # of PretrainConfig, when a run goes on
SIZES = ("d_model", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "d_kv")  # of a T5Config and of ours


@dataclass(frozen=True)
class PretrainConfig:
    """Size of the T5 and of its training. ``noise_density`` and ``mean_span`` are T5's 15 % and 3 by default.

    In ``continuation_share`` of the documents one span is hidden instead, all that follows the first full stop (T5's
    prefix form, 3.2.1): a shallow decoder then has to find in the encoding of the first sentence what the others say.
    Without ``decoder_feed_forward`` it can look up but not work out: what it needs has to stand in the encoding.
    Documents are cut at ``max_length`` tokens. ``init_from`` is the folder of an encoder of this size to start from,
    with its tokenizer; the decoder is new.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    d_model: int = 192
    d_ff: int = 512
    num_layers: int = 4
    num_decoder_layers: int = 1
    decoder_feed_forward: bool = True
    num_heads: int = 4
    d_kv: int = 64
    noise_density: float = 0.15
    mean_span: float = 3.0
    continuation_share: float = 0.0
    max_length: int = 128
    init_from: Path | None = None
    steps: int = 2400
    batch_size: int = 64
    learning_rate: float = 1e-2
    warmup: int = 100
    seed: int = 0
    checkpoint_every: int = 25

    def __post_init__(self) -> None:
        for name in (*SIZES, "max_length", "batch_size", "checkpoint_every"):
            check_int(name, getattr(self, name), 1)
        for name in ("steps", "warmup"):
            check_int(name, getattr(self, name), 0)
        check_int("seed", self.seed, 0, 2**62)
        density, rate = self.noise_density, self.learning_rate
        require(0 < density < 1, f"noise_density is {density}; expected a share above 0 and below 1")
        check_number("continuation_share", self.continuation_share, 0, 1)
        require(self.mean_span >= 1, f"mean_span is {self.mean_span}; expected at least one token")
        require(0 < rate < math.inf, f"learning_rate is {rate}; expected a positive number")
        start = self.init_from
        require(start is None or start.is_dir(), f"init_from '{start}' is no folder; give the one of an encoder")


def train_tokenizer(captions: Iterable[str], spelling: str = SPELLING) -> T5Tokenizer:
    """A T5 tokenizer (sentencepiece unigram, case folded) in which every word of ``captions`` is one piece.

    Where they have more than :data:`MAX_WORDS`, those that occur most. Words that they lack are spelt, in ``spelling``
    and the captions' own characters; any other character is <unk>. (T5's tokenizer knows no pieces for bytes.)

    Raises:
        ValueError: nothing in ``captions`` to make pieces of.
    """
    captions = list(captions)
    counts = Counter(word for text in captions for word in text.lower().split())
    words = counts.most_common(MAX_WORDS)
    own = {character for word, _ in words for character in word} - set(spelling)
    with tempfile.TemporaryDirectory() as folder:
        # unigram training drops words that look compositional; seeding it with the words keeps them whole
        seeds = Path(folder) / "seeds.tsv"
        seeds.write_text("".join(f"\u2581{word}\t{count}\n" for word, count in words), encoding="utf-8")
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(captions),
                model_prefix=str(Path(folder) / "spiece"),
                vocab_size=len(words) + len(own) + len(spelling) + 16,
                hard_vocab_limit=False,
                character_coverage=1.0 if len(own) <= MAX_WORDS else 0.9995,
                required_chars=spelling,
                seed_sentencepieces_file=str(seeds),
                normalization_rule_name="nmt_nfkc_cf",
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            told = " ".join(str(error).split())
            raise ValueError(f"no tokenizer can be made of {len(captions)} captions: {told}") from error
        return T5Tokenizer.from_pretrained(folder)


def corrupt_spans(
    ids: Sequence[int], rng: np.random.Generator, sentinels: Sequence[int], density: float, mean_span: float
) -> tuple[list[int], list[int]]:
    """Replace random spans by sentinels; the target lists each sentinel followed by what it hides.

    Args:
        ids: token ids without the end token, at least one, and that one is hidden.
        sentinels: ids of ``<extra_id_0>``, ``<extra_id_1>``, ...
        density: share of tokens hidden; mean_span: mean length of a hidden span.

    Returns:
        (input ids, target ids), both without the end token.
    """
    n = len(ids)
    hidden = min(max(round(n * density), 1), max(n - 1, 1))
    spans = min(max(round(hidden / mean_span), 1), hidden, n - hidden + 1, len(sentinels))
    lengths = _random_partition(hidden, spans, rng)
    gaps = _random_partition(n - hidden + 2, spans + 1, rng)
    gaps[0] -= 1  # the text may start with a hidden span, and end with one: the last gap is what is left
    inputs: list[int] = []
    targets: list[int] = []
    position = 0
    for sentinel, gap, length in zip(sentinels, gaps, lengths, strict=False):
        inputs += [*ids[position : position + gap], sentinel]
        position += gap
        targets += [sentinel, *ids[position : position + length]]
        position += length
    return inputs + list(ids[position:]), targets


def hide_continuation(ids: Sequence[int], sentinel: int, stop: int) -> tuple[list[int], list[int]] | None:
    """As :func:`corrupt_spans` with one span, all that follows the first ``stop``; None where nothing follows it."""
    if stop not in ids[:-1]:
        return None
    cut = list(ids).index(stop) + 1
    return [*ids[:cut], sentinel], [sentinel, *ids[cut:]]


def _random_partition(total: int, parts: int, rng: np.random.Generator) -> list[int]:
    """``parts`` positive integers that sum to ``total``, every such list equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).tolist()


def _pad(rows: list[list[int]], value: int) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _batch(
    document: Callable[[int], str], tokenizer: T5Tokenizer, config: PretrainConfig, step: int
) -> dict[str, Tensor]:
    """Batch ``step``: a function of (seed, step) alone, so that a resumed run sees what it would have seen."""
    eos = tokenizer.convert_tokens_to_ids("</s>")
    sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(100)])
    stop = tokenizer(".", add_special_tokens=False).input_ids[-1]
    inputs, targets = [], []
    for i in range(step * config.batch_size, (step + 1) * config.batch_size):
        rng = np.random.Generator(np.random.Philox(key=[config.seed, i]))
        ids = tokenizer(document(i), add_special_tokens=False, verbose=False).input_ids[: config.max_length]
        whole = hide_continuation(ids, sentinels[0], stop) if rng.random() < config.continuation_share else None
        source, target = whole or corrupt_spans(ids, rng, sentinels, config.noise_density, config.mean_span)
        inputs.append([*source, eos])
        targets.append([*target, eos])
    ids = _pad(inputs, 0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": _pad(targets, -100)}


def build(tokenizer: T5Tokenizer, config: PretrainConfig) -> T5ForConditionalGeneration:
    """A T5 v1.1-shaped model (gated GELU) of the configured size, seeded."""
    torch.manual_seed(config.seed)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            **{name: getattr(config, name) for name in SIZES},
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=True,
            decoder_start_token_id=0,
        )
    )
    if not config.decoder_feed_forward:
        for block in model.decoder.block:
            out = block.layer[-1].DenseReluDense.wo.weight
            nn.init.zeros_(out)
            out.requires_grad_(False)
    return model


def start_from(model: T5ForConditionalGeneration, folder: Path) -> None:
    """Copy the encoder in ``folder`` into ``model``, whose decoder stays new.

    Raises:
        ValueError: the encoder there has other sizes.
    """
    encoder = T5EncoderModel.from_pretrained(component_folders(folder)[1], dtype=torch.float32)
    try:
        model.shared.load_state_dict(encoder.shared.state_dict())
        model.encoder.load_state_dict(encoder.encoder.state_dict())
    except RuntimeError as error:
        wrong = str(error).splitlines()[1].strip()
        raise ValueError(f"init_from {str(folder)!r} holds an encoder of other sizes than asked for: {wrong}") from None


def check_begun(begun: Mapping[str, str], saved: Mapping[str, str], out: Path) -> None:
    """Refuse to go on with other settings or texts. Raises: ValueError, naming the first that differs."""
    for name, now in begun.items():
        before = saved.get(name, now)  # where it was begun before this was stored
        what = "texts" if name == "texts" else f"{name} {before}, not {now}"
        require(before == now, f"{str(out)!r} was begun with {'other ' * (name == 'texts')}{what}: give another --out")


def pretrain(
    document: Callable[[int], str], tokenizer: T5Tokenizer, config: PretrainConfig, out: Path, texts: str = ""
) -> Path:
    """Pre-train and save ``out/tokenizer`` and ``out/text_encoder`` (float32); resumes from ``out/state.pt``.

    Args:
        document: index -> text; called once per index, in order, without end.
        out: folder; ``metrics.jsonl`` there holds the loss (nats per target token) and token accuracy.
        texts: names what ``document`` tells (a digest, say).

    Returns:
        ``out``, which :func:`imagen.text.encoder.load_text_encoder` loads.

    Raises:
        ValueError: ``out`` was begun with other settings or texts.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = build(tokenizer, config)
    # T5's own optimiser: steps relative to each weight's size, without which its unscaled attention saturates
    optimizer = torch.optim.Adafactor([p for p in model.parameters() if p.requires_grad], lr=config.learning_rate)
    state, first = out / STATE, 0
    begun = {name: str(value) for name, value in asdict(config).items() if name not in FREE} | {"texts": texts}
    if state.exists():
        saved = torch.load(state, weights_only=True)
        check_begun(begun, saved.get("begun", {}), out)
        first = saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        print(f"going on from step {first:,}", flush=True)
    elif config.init_from is not None:
        start_from(model, config.init_from)
    metrics = MetricsFile(out / "metrics.jsonl", first)
    start = time.monotonic()
    for step in range(first, config.steps):
        batch = _batch(document, tokenizer, config, step)
        output = model(**batch)
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = config.learning_rate * _learning_rate_factor(step, config)
        optimizer.step()
        if (step + 1) % 20 == 0:
            known = batch["labels"] >= 0
            accuracy = (output.logits.argmax(-1) == batch["labels"])[known].float().mean()
            row = {"step": step + 1, "loss": round(output.loss.item(), 5), "accuracy": round(accuracy.item(), 4)}
            seconds = (time.monotonic() - start) / (step + 1 - first)
            row["seconds_per_step"] = round(seconds, 3)
            metrics.write(row)
            left = f"minutes_left {seconds * (config.steps - step - 1) / 60:.1f}"
            print(*(f"{key} {value}" for key, value in row.items()), left, flush=True)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            saved = {"step": step + 1, "begun": begun}
            saved |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            with filling(state.with_suffix(".tmp")):
                torch.save(saved, state.with_suffix(".tmp"))
                state.with_suffix(".tmp").replace(state)
    metrics.close()
    encoder = T5EncoderModel(model.encoder.config)
    encoder.shared.load_state_dict(model.shared.state_dict())
    encoder.encoder.load_state_dict(model.encoder.state_dict())
    for name, part in (("text_encoder", encoder), ("tokenizer", tokenizer)):
        partial = out / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with filling(partial):
            part.save_pretrained(partial)
            shutil.rmtree(out / name, ignore_errors=True)
            partial.rename(out / name)
    return out


def _learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min((step + 1) / max(config.warmup, 1), (config.steps - step) / max(config.steps - config.warmup, 1))
