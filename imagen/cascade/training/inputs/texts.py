"""Captions -> embeddings, without gradients: from the frozen encoder, or a cache of what it made."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen.cascade.training.config.run import RunConfig, TextConfig
from imagen.conditions.text import Words, null_text
from imagen.errors import ConfigError
from imagen.text.cache.fingerprint import fingerprint
from imagen.text.cache.store import Identity, Manifest, MissingCaption, TextCache
from imagen.text.folders import local_folder


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
        config, self.device = self.config, device
        if config.text.cache is not None:
            self.cache = open_cache(config)
        elif config.text.encoder is not None:
            self._load(config.text.encoder, config)
        else:
            return self
        width, expected = self._width(), config.unet.get("text_dim")
        if expected is not None and width != expected:
            raise ConfigError(
                f"unet.text_dim {expected} differs from the encoder's width {width}: set unet.text_dim {width}"
            )
        return self

    def _load(self, encoder: str, config: RunConfig) -> None:
        from imagen.text.encoder import load_text_encoder
        from imagen.text.kinds import check_max_length

        try:
            dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.text.dtype]
            self.tokenizer, self.encoder = load_text_encoder(encoder, dtype)
            check_max_length(config.text.max_length, self.encoder.config)
        except ValueError as error:
            raise ConfigError(f"text.encoder: {error}") from error
        self.encoder.to(self.device)

    def _width(self) -> int:
        if self.cache is not None:
            return self.cache.manifest.identity.width
        from imagen.text.kinds import text_width

        return text_width(self.encoder.config)

    def __call__(self, words: Words) -> tuple[Tensor, Tensor]:
        """(B, L, D) and (B, L) on the device."""
        if words.embedding is not None and words.mask is not None:
            return words.embedding.to(self.device), words.mask.to(self.device)
        captions = words.captions
        if self.cache is not None:
            return read_cache(self.cache, captions, self.device, self.config)
        assert self.encoder is not None, "a stage with text has an encoder, a cache or embeddings"
        from imagen.text.encoder import as_read, encode

        text = self.config.text
        captions = [as_read(caption, text.lowercase) for caption in captions]
        encoded = encode(self.tokenizer, self.encoder, captions, text.max_length, padding=text.padding)
        if encoded[1].shape[1] >= text.max_length and not self._told_of_cuts:  # most batches are not so long
            self._tell_of_cuts(captions)
        return encoded

    def _tell_of_cuts(self, captions: Sequence[str]) -> None:
        """Warn of the first caption that is longer than text.max_length."""
        from imagen.text.encoder import token_count

        limit = self.config.text.max_length
        for caption in captions:
            if len(caption.encode()) + 2 <= limit:  # a token has a byte at the least, but for the first and the last
                continue
            if (count := token_count(self.tokenizer, caption)) > limit:
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
    try:
        identity = Manifest.read(Path(text.cache)).identity
    except ValueError as error:
        raise ConfigError(f"text.cache: {error}") from error
    length = identity.fingerprint.max_length
    if text.max_length != length:
        raise ConfigError(
            f"text.max_length {text.max_length} differs from that of text.cache {text.cache!r}: set text.max_length "
            f"{length}, or encode again"
        )
    if text.dtype != identity.compute_dtype:
        raise ConfigError(
            f"text.dtype {text.dtype} differs from what text.cache {text.cache!r} was computed in: set text.dtype "
            f"{identity.compute_dtype}, or encode again"
        )
    if text.encoder is None:
        return replace(config, text=replace(text, encoder=identity.encoder))
    check_encoder(text, text.encoder, identity)
    return config


def check_encoder(text: TextConfig, encoder: str, identity: Identity) -> None:
    """Raises ConfigError unless the cache was made by this encoder."""
    folder = local_folder(encoder)
    try:
        found = None if folder is None else fingerprint(folder, text.max_length)
    except ValueError as error:
        raise ConfigError(f"text.encoder: {error}") from error
    if found is None and encoder != identity.encoder:
        raise ConfigError(
            f"text.encoder {encoder!r} is not on this machine, and text.cache {text.cache!r} names "
            f"{identity.encoder!r}: set text.encoder null to train with that"
        )
    reasons = [] if found is None else identity.differences(replace(identity, fingerprint=found))
    if reasons:
        raise ConfigError(
            f"text.cache {text.cache!r} was not made by text.encoder {encoder!r} ({'; '.join(reasons)}): encode again "
            "into another folder, or set text.encoder null to train with the cache's"
        )


def open_cache(config: RunConfig) -> TextCache:
    """The run's cache, with the prompts of its grids in it.

    Raises:
        ConfigError: not finished, damaged, or without one of the prompts.
    """
    assert config.text.cache is not None
    try:
        cache = TextCache(config.text.cache)
    except ValueError as error:
        raise ConfigError(f"text.cache: {error}") from error
    for prompt in cache.missing(config.grid.prompts if config.grid.every else ())[:1]:
        raise ConfigError(
            f"text.cache {config.text.cache!r} lacks the prompt {prompt!r} of grid.prompts: give the python -m "
            "imagen.text.cache command again, with this configuration"
        )
    return cache


def read_cache(
    cache: TextCache, captions: Sequence[str], device: torch.device, config: RunConfig
) -> tuple[Tensor, Tensor]:
    """Embeddings and mask as imagen.text.encoder.encode gives them.

    Raises:
        ConfigError: naming a caption that the cache lacks, and the command that adds it.
    """
    try:
        return cache(captions, device)
    except MissingCaption as error:
        endless = f" --num {config.train.steps * config.train.batch_size}" if config.data.kind == "shapes" else ""
        command = f"python -m imagen.text.cache --config {Path(config.run_dir) / 'config.yaml'}{endless}"
        raise ConfigError(f"{error}: add it with {command}") from error
