"""The part of ``torch.optim.Optimizer.step`` that does not depend on the rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class GroupedOptimizer(torch.optim.Optimizer):
    """An optimizer whose rule is ``_update``: new values for the parameters of one group that have a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update([p for p in group["params"] if p.grad is not None], group)
        return loss

    def _update(self, params: Sequence[Tensor], group: dict[str, Any]) -> None:
        raise TypeError(f"{type(self).__name__} does not say how it updates")
