"""The exponential moving average of a network's weights, in float32, asserted to move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Weights(Protocol):
    """What has weights by name: a module, or the contract of one."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Its weights with their names."""

    def state_dict(self) -> dict[str, Any]:
        """Weights and buffers by name."""


def trained_state(module: Weights) -> dict[str, Tensor]:
    """What a run changes, and so averages and saves: the module's state without its frozen parameters."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


class EMA:
    """average <- average + (1 - d) (weights - average), once per optimizer step.

    The paper does not describe its averaging: decay and warm-up are our choice. Buffers are copied, not averaged;
    frozen parameters are left alone.

    Args:
        module: the network, without wrappers.
        decay: d in the limit, in [0, 1).
        warmup: with it, d after n earlier updates is min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, module: Weights, decay: float = 0.9999, warmup: bool = True) -> None:
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.average = {
            name: value.detach().to(torch.float64 if value.dtype == torch.float64 else torch.float32, copy=True)
            if value.is_floating_point()
            else value.detach().clone()
            for name, value in trained_state(module).items()
        }
        parameters = {name for name, _ in module.named_parameters()}
        self._moving = [name for name in self.average if name in parameters]
        self._copied = [name for name in self.average if name not in parameters]
        self._last_fingerprint, self._last_updates = self._fingerprint(), 0

    def decay_at(self, updates: int) -> float:
        """The decay used by the update that follows `updates` earlier ones."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, module: Weights) -> None:
        """Move the average towards the module's present weights."""
        weights = trained_state(module)
        average = [self.average[name] for name in self._moving]
        current = [weights[name].detach().to(self.average[name].dtype) for name in self._moving]
        torch._foreach_lerp_(average, current, 1 - self.decay_at(self.updates))
        for name in self._copied:
            self.average[name].copy_(weights[name])
        self.updates += 1

    @contextmanager
    def swapped_in(self, module: Weights) -> Iterator[None]:
        """Put the average into the module for the time of a `with` block; the weights return bit for bit."""
        weights = trained_state(module)
        kept = {name: value.detach().clone() for name, value in weights.items()}
        try:
            with torch.no_grad():
                for name, value in weights.items():
                    value.copy_(self.average[name])
            yield
        finally:
            with torch.no_grad():
                for name, value in weights.items():
                    value.copy_(kept[name])

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Take over a saved average and its count of updates.

        Raises:
            ValueError: where names or shapes differ from the network's.
        """
        here = {name: tuple(value.shape) for name, value in self.average.items()}
        saved = {name: tuple(value.shape) for name, value in tensors.items()}
        if here != saved:
            odd = sorted(name for name in here.keys() | saved.keys() if here.get(name) != saved.get(name))
            raise ValueError(f"the saved average does not fit this network: {odd[0]} differs (and {len(odd) - 1} more)")
        for name, value in self.average.items():
            value.copy_(tensors[name])
        self.updates = updates
        self._last_fingerprint, self._last_updates = self._fingerprint(), updates

    def check_moved(self, module: Weights) -> None:
        """Assert that updates since the last check changed the average, as long as it differs from the weights.

        Raises:
            RuntimeError: the average stood still. It is what a run exports, so such a run would be lost.
        """
        fingerprint = self._fingerprint()
        if self.updates > self._last_updates and fingerprint == self._last_fingerprint:
            weights = trained_state(module)
            far = any(not torch.allclose(self.average[n], weights[n].to(self.average[n].dtype)) for n in self._moving)
            if far:
                raise RuntimeError(
                    f"the EMA did not move in {self.updates - self._last_updates} updates: this is a bug"
                )
        self._last_fingerprint, self._last_updates = fingerprint, self.updates

    def _fingerprint(self) -> float:
        if not self._moving:
            return 0.0
        norms = torch._foreach_norm([self.average[name] for name in self._moving])
        weights = torch.arange(1, len(norms) + 1, dtype=torch.float64)
        return float((torch.stack(list(norms)).double().cpu() * weights).sum())
