"""Regions: the parts that repeat in a network, each compiled by itself, so that equal ones share one small graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

GRAPHS = 256
"""Most graphs of one kind of region: of every width, side, dtype, of one picture and of several."""


class Region(nn.Module):
    """A part that repeats in a network; diffusers' ``compile_repeated_blocks`` compiles those in ``_repeated_blocks``.

    Its graph serves every region of its shape, any number of pictures from two up and texts of any length. Channels and
    sides are constants of it: graphs for open ones take torch five times as long to make. What it does with the text
    alone, once a sample, is not compiled.
    """

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As torch's; ``dynamic`` is about sides alone, False unless it is given.

        torch's limit of graphs for one function (``torch._dynamo.config.recompile_limit``, 8) is raised for the whole
        process, for all regions of a kind count as one function there, and what is beyond it is not compiled.
        """
        import torch._dynamo

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        super().compile(*args, **{"dynamic": False, **kwargs})
        compiled: Any = self._compiled_call_impl

        def call(x: Tensor | None, *rest: Any, **named: Any) -> Any:
            if x is None or torch.compiler.is_compiling():
                return self._call_impl(x, *rest, **named)
            leave_open((x, *rest, *named.values()))
            return compiled(x, *rest, **named)

        self._compiled_call_impl = call  # torch leaves it out of copies and of what is stored


def leave_open(inputs: Iterable[Any]) -> None:
    """Lets a graph that is made for these inputs keep open how many pictures there are, and how many tokens of text.

    Text and its keys and values (B, L, D) are what has three axes, its mask (B, L) is of bool; so are the tokens of a
    picture, whose number is open, too.
    """
    from torch._dynamo import maybe_mark_dynamic

    for given in inputs:
        if isinstance(given, Tensor):
            text = given.ndim == 3 or given.dtype is torch.bool
            maybe_mark_dynamic(given, [0, 1] if text else [0])
        elif isinstance(given, tuple):
            leave_open(given)


def uncompiled(network: nn.Module) -> None:
    """Takes back what ``compile`` and ``compile_repeated_blocks`` did."""
    for module in network.modules():
        module._compiled_call_impl = None
