"""Captions -> embeddings, without gradients: from the frozen encoder, or a cache of what it made."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen.cascade.training.config.run import RunConfig
from imagen.conditions.text import Words, null_text
from imagen.errors import ConfigError, config_errors
from imagen.text.cache.store import Manifest, MissingCaption, TextCache
from imagen.text.encoder import as_read, encode_tokens, load_text_encoder, token_count, tokenize
from imagen.text.folders import fingerprint, local_folder
from imagen.text.kinds import check_max_length, text_width


class Texts:
    """Words -> (B, L, D) float32 and a mask, without gradients: as they come encoded, from the frozen encoder, or from
    a cache of what it made, which loads no encoder.

    :meth:`load` comes before the first call. Raises ConfigError for a caption that the cache lacks.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config, self.device = config, torch.device("cpu")
        self.encoder: Any = None
        self.cache: TextCache | None = None
        self._told_of_cuts = False

    def load(self, device: torch.device) -> Texts:
        """Load what makes embeddings, onto the device they are for; returns itself.

        Raises:
            ConfigError: no encoder or cache there, of another width than the network's, or a grid's prompt that the
                cache lacks.
        """
        text, grid, self.device = self.config.text, self.config.grid, device
        if text.cache is not None:
            with config_errors("text.cache: "):
                self.cache = TextCache(text.cache)
            for prompt in self.cache.missing(grid.prompts if grid.every else ())[:1]:
                raise ConfigError(
                    f"text.cache {text.cache!r} lacks the prompt {prompt!r} of grid.prompts: give the python -m "
                    "imagen.text.cache command again, with this configuration"
                )
            width = self.cache.manifest.identity.width
        elif text.encoder is not None:
            with config_errors("text.encoder: "):
                self.tokenizer, self.encoder = load_text_encoder(text.encoder, getattr(torch, text.dtype))
                check_max_length(text.max_length, self.encoder.config)
            self.encoder.to(device)
            width = text_width(self.encoder.config)
        else:
            return self
        expected = self.config.unet.get("text_dim")
        if expected not in (None, width):
            raise ConfigError(
                f"unet.text_dim {expected} differs from the encoder's width {width}: set unet.text_dim {width}"
            )
        return self

    def __call__(self, words: Words) -> tuple[Tensor, Tensor]:
        """(B, L, D) and (B, L) on the device."""
        if words.embedding is not None and words.mask is not None:
            return words.embedding.to(self.device), words.mask.to(self.device)
        if self.cache is not None:
            return self._cached(self.cache, words.captions)
        assert self.encoder is not None, "a stage with text has an encoder, a cache or embeddings"
        text = self.config.text
        captions = self._as_read(words.captions)
        tokens = words.tokens or tokenize(self.tokenizer, captions, text.max_length, text.padding)
        encoded = encode_tokens(self.encoder, tokens, text.padding)
        if encoded[1].shape[1] >= text.max_length and not self._told_of_cuts:  # most batches are not so long
            self._tell_of_cuts(captions)
        return encoded

    def tokenized(self, raw: dict[str, Any]) -> dict[str, Any]:
        """A collated batch with the tokens of its captions, if an encoder is to read them: a part of loading."""
        if self.encoder is None or "embedding" in raw:
            return raw
        text = self.config.text
        return {**raw, "tokens": tokenize(self.tokenizer, self._as_read(raw["caption"]), text.max_length, text.padding)}

    def _as_read(self, captions: Sequence[str]) -> list[str]:
        return [as_read(caption, self.config.text.lowercase) for caption in captions]

    def _cached(self, cache: TextCache, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As the encoder gives them. Raises: ConfigError with the command that adds what the cache lacks."""
        try:
            return cache(captions, self.device)
        except MissingCaption as error:
            train, run = self.config.train, Path(self.config.run_dir)
            endless = f" --num {train.steps * train.batch_size}" if self.config.data.kind == "shapes" else ""
            command = f"python -m imagen.text.cache --config {run / 'config.yaml'}{endless}"
            raise ConfigError(f"{error}: add it with {command}") from error

    def _tell_of_cuts(self, captions: Sequence[str]) -> None:
        """Warn of the first caption that is longer than text.max_length."""
        limit = self.config.text.max_length
        for caption in captions:  # a token has a byte at the least, but for the first and the last
            if len(caption.encode()) + 2 > limit and (count := token_count(self.tokenizer, caption)) > limit:
                self._told_of_cuts = True
                warnings.warn(
                    f"a caption of {count} tokens is cut at text.max_length {limit}: {caption[:60]!r}...; further ones "
                    "are cut without a word",
                    stacklevel=3,
                )
                return

    def null(self, count: int, dim: int) -> tuple[Tensor, Tensor]:
        """The text of the unconditional half of guidance: (count, L, dim) and (count, L)."""
        if self.config.text.unconditional == "empty":
            return self(Words([""] * count))
        return null_text(count, dim, self.device)


def with_cache(config: RunConfig) -> RunConfig:
    """The configuration, its text.encoder filled in from text.cache where that is null; without a cache as it is.

    A text.encoder that is given is compared with the cache's, by its files where they are on this machine and else by
    its name. Nothing is loaded.

    Raises:
        ConfigError: no finished cache there, or one of another encoder, length or dtype.
    """
    text = config.text
    if text.cache is None:
        return config
    with config_errors("text.cache: "):
        identity = Manifest.read(Path(text.cache)).identity
    made_with = {"max_length": identity.fingerprint.max_length, "dtype": identity.compute_dtype}
    for key, value in made_with.items():
        if getattr(text, key) != value:
            raise ConfigError(
                f"text.{key} {getattr(text, key)} differs from what text.cache {text.cache!r} was made with: set "
                f"text.{key} {value}, or encode again"
            )
    if text.encoder is None:
        return replace(config, text=replace(text, encoder=identity.encoder))
    folder = local_folder(text.encoder)
    if folder is None and text.encoder != identity.encoder:
        raise ConfigError(
            f"text.encoder {text.encoder!r} is not on this machine, and text.cache {text.cache!r} names "
            f"{identity.encoder!r}: set text.encoder null to train with that"
        )
    with config_errors("text.encoder: "):
        found = identity.fingerprint if folder is None else fingerprint(folder, text.max_length)
    reasons = identity.differences(replace(identity, fingerprint=found))
    if reasons:
        raise ConfigError(
            f"text.cache {text.cache!r} was not made by text.encoder {text.encoder!r} ({'; '.join(reasons)}): encode "
            "again into another folder, or set text.encoder null to train with the cache's"
        )
    return config
