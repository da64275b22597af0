"""Conditions by name: classes, whose vectors join the time embedding, and further channels beside the noisy image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .contract import Facts
from .options import Options, by_name

TABLES = "class_tables"  # the networks' attribute, which is part of their weights' names


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


def grown(
    weights: Mapping[str, Tensor], trained: Facts, own: Mapping[str, Tensor], stem: str, options: Options
) -> dict[str, Tensor]:
    """Weights of a trained network for one that is the same but for further classes and further channels.

    The stem's weights for new channels are zero, so that training goes on from what was learned, whatever the channels
    hold (as GLIDE was taught inpainting; Nichol et al. 2021, section 4.3); new tables are the new network's own.

    Args:
        weights: by name, of the network of which ``trained`` are the facts; a stem of another size than those and
            ``options`` tell is left as it is.
        own: the new network's, by name, and ``options`` its options.
        stem: name of the first layer, whose weight has the input's channels as its second axis.

    Raises:
        ValueError: a name that the trained network has and the new one lacks, or has with another number; other
            channels of the noisy or the low-resolution image.
    """
    pictures = (options.in_channels, options.lowres_channels)
    if pictures != (trained.in_channels, trained.lowres_channels):
        raise ValueError(
            f"in_channels and lowres_channels are {pictures[0]} and {pictures[1]}, but it was trained with "
            f"{trained.in_channels} and {trained.lowres_channels}"
        )
    for option, before in (("classes", trained.classes), ("extra_channels", trained.extra_channels)):
        now = by_name(getattr(options, option))
        if not before.items() <= now.items():
            raise ValueError(f"{option} {now}, but it was trained with {before}: keep these, and add others at will")
    grown_weights = dict(weights)
    for name in by_name(options.classes).keys() - trained.classes.keys():
        grown_weights[f"{TABLES}.{name}.weight"] = own[f"{TABLES}.{name}.weight"]
    weight = weights.get(f"{stem}.weight")
    patch, extra = options.patch_size**2, by_name(options.extra_channels)
    coordinates = own[f"{stem}.weight"].shape[1] - options.stem_channels  # they come last
    sizes = [sum(pictures) * patch, *(number * patch for number in trained.extra_channels.values()), coordinates]
    if weight is not None and weight.shape[1] == sum(sizes):
        first, *further, last = weight.split(sizes, dim=1)
        kept = dict(zip(trained.extra_channels, further, strict=True))
        new = {name: weight.new_zeros(len(weight), n * patch, *weight.shape[2:]) for name, n in extra.items()}
        parts = [first, *(kept.get(name, new[name]) for name in extra), last]
        grown_weights[f"{stem}.weight"] = torch.cat(parts, dim=1)
    return grown_weights
