"""Conditions by name: classes, whose vectors join the time embedding, and further channels beside the noisy image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .options import Options, by_name


def class_tables(classes: Mapping[str, int] | None, width: int) -> nn.ModuleDict:
    """For each name a table of (number + 1, width) vectors, the last of which stands for no class.

    They start normal with deviation 0.02 (ours), so that a class hardly moves the embedding of the time until it is
    learned.

    Raises:
        ValueError: a name that torch's modules have for themselves.
    """
    tables = nn.ModuleDict()
    for name, number in by_name(classes).items():
        if hasattr(tables, name):
            raise ValueError(f"classes has the name {name!r}, which torch's modules use themselves; choose another")
        table = nn.Embedding(number + 1, width)
        nn.init.normal_(table.weight, std=0.02)
        tables[name] = table
    return tables


def checked(options: Options, conditions: Mapping[str, Tensor] | None, sample: Tensor) -> Mapping[str, Tensor]:
    """What a call for sample (B, C, H, W) was given by name, all of it there and shaped as ``options`` ask for.

    The numbers of classes are looked at on the CPU alone, and not while a graph is compiled: elsewhere that would wait
    for the GPU, where torch itself refuses to read past a table.

    Raises:
        ValueError: a name missing or unknown; another shape, or classes that are not int64 from 0 to their number.
    """
    given = {} if conditions is None else conditions
    classes, extra = options.classes or {}, options.extra_channels or {}
    for name in (*classes, *extra):
        if name not in given:
            raise ValueError(
                f"conditions lack {name!r}; this network was built with it, so give its tensor by that name"
            )
    for name in given:
        if name not in classes and name not in extra:
            known = ", ".join(map(repr, (*classes, *extra))) or "none"
            raise ValueError(f"conditions hold {name!r}, which this network was built without; its names: {known}")
    batch, _, height, width = sample.shape
    for name, channels in extra.items():
        if given[name].shape != (batch, channels, height, width):
            raise ValueError(
                f"conditions[{name!r}] has shape {tuple(given[name].shape)}; "
                f"give {(batch, channels, height, width)}, {channels} channels at the sample's size"
            )
    for name, number in classes.items():
        ids = given[name]
        if ids.shape != (batch,) or ids.dtype != torch.int64:
            raise ValueError(
                f"conditions[{name!r}] has shape {tuple(ids.shape)} and dtype {ids.dtype}; give ({batch},) int64, "
                "a class for each picture"
            )
        readable = ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if readable and bool(((ids < 0) | (ids > number)).any()):
            raise ValueError(
                f"conditions[{name!r}] is {ids.tolist()}; give 0 to {number - 1}, or {number} for no class"
            )
    return given
