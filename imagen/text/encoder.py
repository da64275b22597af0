"""The frozen text encoder: prompts -> embeddings (B, L, D) and a mask (B, L) (paper section 2.1).

Any T5, or text tower of a CLIP (:mod:`imagen.text.kinds`), that ``transformers`` can load, by folder or Hub id. The
paper does not say how long a prompt may be; here the caller does, and a batch is trimmed to its own longest prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from imagen.modes import evaluating
from imagen.text.folders import component_folders
from imagen.text.kinds import TextEncoder, check_max_length, read_encoder


def load_text_encoder(
    name_or_path: str | Path, dtype: torch.dtype = torch.float32, **kwargs: Any
) -> tuple[PreTrainedTokenizerBase, TextEncoder]:
    """Load a tokenizer and its T5's or CLIP's text encoder, frozen and in eval mode.

    Args:
        name_or_path: a folder (or Hub id) holding both, or a pipeline folder with ``tokenizer/`` and ``text_encoder/``;
            of a whole CLIP the text tower alone is taken.
        dtype: of the weights; said explicitly because the default of ``transformers`` has changed between versions.
        kwargs: passed to both ``from_pretrained`` (``revision``, ``cache_dir``, ``local_files_only``).

    Raises:
        ValueError: nothing there, the checkpoint leaves a weight of the encoder uninitialised, or the tokenizer has no
            words (:func:`check_tokenizer`).
    """
    tokenizer_path, encoder_path = component_folders(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, **kwargs)
        encoder, info = read_encoder(encoder_path, dtype=dtype, **kwargs)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"no text encoder at {str(name_or_path)!r}: {reason}; give a folder or Hub id of a T5 or a CLIP"
        ) from error
    check_loaded(encoder, info, str(name_or_path))
    check_tokenizer(tokenizer, str(name_or_path), encoder.config.vocab_size)
    return tokenizer, encoder.requires_grad_(False).eval()


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str, vocab_size: int) -> None:
    """Refuse a tokenizer that cannot tell words apart, or that is another encoder's.

    From a folder without the tokenizer's vocabulary ``transformers`` makes one that holds special tokens alone, and
    every word becomes <unk>.

    Args:
        source: folder or Hub id, for the message.
        vocab_size: rows of the encoder's embedding table (``encoder.config.vocab_size``); there may be fewer tokens.

    Raises:
        ValueError: fewer than two pieces besides the special tokens and the space, or ids that the table lacks.
    """
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    pieces = [piece for piece, token in vocabulary.items() if token not in special and piece.strip("\u2581 ")]
    if len(pieces) < 2:
        raise ValueError(
            f"tokenizer of {source!r} has no words, only special tokens: save its tokenizer.json there (or "
            "spiece.model, or vocab.json and merges.txt)"
        )
    most = max(vocabulary.values())
    if most >= vocab_size:
        raise ValueError(
            f"tokenizer of {source!r} has ids up to {most}, its encoder {vocab_size} embeddings: save the two together"
        )


def check_loaded(encoder: TextEncoder, info: dict[str, Any], name: str) -> None:
    """Refuse an encoder with weights that the checkpoint did not set: it would condition on noise without a word.

    Raises:
        ValueError: naming the first such weights, or an embedding that is constant or not finite.
    """
    unset = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if unset:
        raise ValueError(f"text encoder {name!r} lacks {', '.join(unset[:3])} ({len(unset)} in all); re-export it")
    if isinstance(encoder, T5EncoderModel):
        if encoder.shared.weight is not encoder.encoder.embed_tokens.weight:
            raise ValueError(f"text encoder {name!r}: embed_tokens is not tied to shared.weight; re-export it")
        tables = {"embedding": encoder.shared.weight}
    else:
        embeddings = encoder.embeddings
        tables = {"embedding": embeddings.token_embedding.weight, "position": embeddings.position_embedding.weight}
    for what, table in tables.items():
        if table.device.type != "meta" and not bool(table.float().std() > 0):  # NaN where not all are finite
            raise ValueError(f"text encoder {name!r}: the {what} table is constant or not finite; the file is damaged")


def as_read(prompt: str, lowercase: bool) -> str:
    """The prompt as a model's tokenizer is given it: as written, or stripped and lower-cased (DeepFloyd IF)."""
    return prompt.lower().strip() if lowercase else prompt


def token_count(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Number of tokens of ``prompt`` with the end token, untruncated."""
    return len(tokenizer(prompt, truncation=False, verbose=False).input_ids)


def unknown_characters(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Those of ``prompt`` that ``tokenizer`` has no piece for and reads as <unk>, whichever they are; "" for none."""
    unknown = tokenizer.unk_token_id
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    if unknown == tokenizer.eos_token_id or unknown not in ids:  # CLIP's is its end token
        return ""
    return "".join(c for c in dict.fromkeys(prompt) if unknown in tokenizer(c).input_ids) or prompt


class Tokens(NamedTuple):
    """What a tokenizer makes of B prompts.

    Attributes:
        ids: (B, L) int64, padded at the right.
        mask: (B, L) int64, 1 at real tokens.
    """

    ids: Tensor
    mask: Tensor


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_length: int,
    padding: Literal["masked", "visible"] = "masked",
) -> Tokens:
    """The tokens of prompts, as :func:`encode` reads them, on the CPU."""
    tokens = tokenizer(
        list(prompts),
        padding_side="right",  # CLIP counts its positions from the left
        padding="longest" if padding == "masked" else "max_length",
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    return Tokens(tokens.input_ids, tokens.attention_mask)


@torch.no_grad()
def encode_tokens(
    encoder: TextEncoder, tokens: Tokens, padding: Literal["masked", "visible"] = "masked"
) -> tuple[Tensor, Tensor]:
    """What :func:`encode` makes of tokens, in eval mode."""
    device = "cpu" if encoder.device.type == "meta" else encoder.device  # sequentially offloaded: hooks move its inputs
    ids, mask = (part.to(device, non_blocking=True) for part in tokens)
    with evaluating(encoder):
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    mask = mask.to(hidden.device)  # offloaded, it rests on the CPU and answers from the accelerator
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if padding == "visible":
        return hidden, torch.ones_like(mask, dtype=torch.bool)
    return hidden * mask[..., None], mask.bool()


def encode(
    tokenizer: PreTrainedTokenizerBase,
    encoder: TextEncoder,
    prompts: Sequence[str],
    max_length: int = 128,
    padding: Literal["masked", "visible"] = "masked",
) -> tuple[Tensor, Tensor]:
    """Encode prompts with the encoder's final layer, in eval mode.

    Args:
        prompts: B strings; longer ones are cut at ``max_length`` tokens (use :func:`token_count` to refuse them).
        max_length: most tokens kept, end token included (our choice: the paper is silent), and CLIP's start token.
        padding: "masked" hides it from what reads the text; "visible" pads every prompt to ``max_length`` and shows all
            positions, as DeepFloyd IF was trained (the encoder itself still masks it).

    Returns:
        embeddings (B, L, D) in at least float32 and mask (B, L) bool: zero and False where padding is masked.

    Raises:
        ValueError: no prompts, a prompt that is not a string, or a length that the encoder cannot read.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts is {prompts!r}; expected a non-empty list of strings")
    check_max_length(max_length, encoder.config)
    return encode_tokens(encoder, tokenize(tokenizer, prompts, max_length, padding), padding)
