"""Fitting a network's map that makes encoder states uncorrelated, to the captions that its run begins with."""

from __future__ import annotations

from typing import Any

import torch

from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.inputs.texts import Texts
from imagen.conditions.text import Words
from imagen.errors import ConfigError
from imagen.training.loader import make_loader
from unets.network import Network

CAPTIONS = 2048


def fit_whitening(unet: Network, config: RunConfig, source: Any, texts: Texts) -> None:
    """Fit `unet.whitening`, where there is one, to the tokens of the first :data:`CAPTIONS` captions or all there are.

    The same on every process: each reads the whole of the first batches by itself.

    Raises:
        ConfigError: too few tokens for the width of the text.
    """
    if unet.whitening is None:
        return
    count, read, total, products = 0, 0, torch.zeros(()), torch.zeros(())
    batches = iter(make_loader(config, source, 0, rank=0, world=1))
    while read < min(CAPTIONS, config.train.steps * config.train.batch_size):
        words = Words.of(next(batches))
        read += len(words)
        encoded, mask = texts(words)
        tokens = encoded[mask.bool()].double()
        count, total, products = count + len(tokens), total + tokens.sum(dim=0), products + tokens.T @ tokens
    mean = total / count  # a text has one token at least
    try:
        unet.whitening.fit(count, mean, products / count - torch.outer(mean, mean))
    except ValueError as error:
        raise ConfigError(f"unet.text_whitening: {error}") from error
