"""Networks as they are sampled from, whatever mode they were left in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*networks: nn.Module | None) -> Iterator[None]:
    """Within it every part of the networks is in eval mode (no dropout); behind it each is in the mode it was in."""
    parts = [part for network in networks if network is not None for part in network.modules() if part.training]
    for part in parts:  # not train(False), which would reach those that are in eval mode already
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True
