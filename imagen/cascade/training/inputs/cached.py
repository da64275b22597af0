"""Training from a text cache: what must agree before the first step, and what a missing caption says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from imagen.cascade.training.config.run import RunConfig, TextConfig
from imagen.errors import ConfigError
from imagen.text.cache.store import Identity, Manifest, MissingCaption, TextCache
from imagen.text.folders import fingerprint, local_folder


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
