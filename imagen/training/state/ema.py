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
            name: value.detach().to(
                torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype, copy=True
            )
            for name, value in trained_state(module).items()
        }
        parameters = {name for name, _ in module.named_parameters()}
        self._moving = [name for name in self.average if name in parameters]
        self._copied = [name for name in self.average if name not in parameters]
        self._checked = 0, self._norms()

    def decay_at(self, updates: int) -> float:
        """The decay used by the update that follows `updates` earlier ones."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, module: Weights) -> None:
        """Move the average towards the module's present weights."""
        weights = module.state_dict()  # at every step: trained_state takes twice as long, and an accelerator waits
        average = [self.average[name] for name in self._moving]
        current = [weights[name].to(self.average[name].dtype) for name in self._moving]
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
            _copy(self.average, weights)
            yield
        finally:
            _copy(kept, weights)

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Take over a saved average and its count of updates.

        Raises:
            ValueError: where names or shapes differ from the network's.
        """
        here, saved = ({name: value.shape for name, value in state.items()} for state in (self.average, tensors))
        if here != saved:
            odd = sorted(name for name in here.keys() | saved.keys() if here.get(name) != saved.get(name))
            raise ValueError(f"the saved average does not fit this network: {odd[0]} differs (and {len(odd) - 1} more)")
        _copy(tensors, self.average)
        self.updates = updates
        self._checked = updates, self._norms()

    def check_moved(self, module: Weights) -> None:
        """Assert that updates since the last check changed the average, as long as it differs from the weights.

        Raises:
            RuntimeError: the average stood still. It is what a run exports, so such a run would be lost.
        """
        (updates, norms), self._checked = self._checked, (self.updates, self._norms())
        if self.updates > updates and self._checked[1] == norms:
            weights = trained_state(module)
            far = any(not torch.allclose(self.average[n], weights[n].to(self.average[n].dtype)) for n in self._moving)
            if far:
                raise RuntimeError(f"the EMA did not move in {self.updates - updates} updates: this is a bug")

    def _norms(self) -> list[float]:
        moving = [self.average[name] for name in self._moving]
        return torch.stack(list(torch._foreach_norm(moving))).tolist() if moving else []


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for name, tensor in into.items():
        tensor.copy_(values[name])
