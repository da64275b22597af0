"""A network compiled for training steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def compile_steps(module: nn.Module, **how: Any) -> None:
    """Compile a network as it is called in training steps: one graph, whatever the length of the texts.

    Without gradients it runs uncompiled: pictures that are drawn meanwhile, and what is measured on held-out ones, come
    in other numbers and in other parts, each of which torch would compile anew.

    Args:
        how: arguments of ``torch.compile``.
    """
    module.compile(**how)
    compiled: Any = module._compiled_call_impl

    def call(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return module._call_impl(*given, **named)
        leave_lengths_open((*given, *named.values()))
        return compiled(*given, **named)

    module._compiled_call_impl = call  # type: ignore[assignment]  # torch leaves it out of what is stored


def leave_lengths_open(inputs: Iterable[Any]) -> None:
    """Let a graph that is made for these inputs keep open the length of texts (B, L, D) and of their masks (B, L)."""
    from torch._dynamo import maybe_mark_dynamic

    for given in inputs:
        if isinstance(given, Tensor) and (given.ndim == 3 or (given.ndim == 2 and given.dtype is torch.bool)):
            maybe_mark_dynamic(given, 1)
