"""Counts the parameters of the networks that configuration files describe, without allocating them.

python -m unets.count configs/paper/*.yaml
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from torch import nn

from .attention import TokenAttention
from .contract import network_class

USAGE = "usage: python -m unets.count CONFIG.yaml [...]"
PARTS = ("text projections", "text pooling", "attention", "residual blocks and the rest", "total")


def network(path: str) -> nn.Module:
    """The network of the file's ``unet:`` mapping, on the meta device.

    Raises:
        ValueError: the file has no such mapping, or its ``kind`` is no registered network.
    """
    with open(path, encoding="utf-8") as file:
        content: Any = yaml.safe_load(file) or {}
    mapping = content.get("unet") or {} if isinstance(content, dict) else None
    if not isinstance(mapping, dict):
        raise ValueError("no configuration of a network: expected a mapping unet: with its kind and arguments")
    try:
        cls: type[Any] = network_class(mapping.pop("kind", None))
        with torch.device("meta"):
            built: nn.Module = cls(**mapping)
    except TypeError as error:  # an argument that it has not, or one of another type
        raise ValueError(f"unet: {error}") from error
    return built


def count(module: nn.Module) -> dict[str, int]:
    """Parameters by part (:data:`PARTS`); "attention" is what attention layers hold beside the text's projections."""
    size = {name: parameter.numel() for name, parameter in module.named_parameters()}
    total = sum(size.values())
    pooling = sum(n for name, n in size.items() if name.startswith("add_embedding."))
    text = sum(n for name, n in size.items() if name.startswith("encoder_hid_proj."))
    attention = 0
    for layer in (m for m in module.modules() if isinstance(m, TokenAttention)):
        for name, parameter in layer.named_parameters():
            of_text = name.startswith(("add_k_proj", "add_v_proj", "norm_cross"))
            text, attention = text + of_text * parameter.numel(), attention + (not of_text) * parameter.numel()
    return dict(zip(PARTS, (text, pooling, attention, total - text - pooling - attention, total), strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a Markdown table, a row for each file, in millions; returns the exit code."""
    paths = sys.argv[1:] if arguments is None else arguments
    if not paths or {"-h", "--help"} & {*paths}:
        print(USAGE, file=sys.stdout if paths else sys.stderr)
        return 0 if paths else 2
    try:
        print("| file | " + " | ".join(PARTS) + " |")
        print("|---|" + "---:|" * len(PARTS))
        for path in paths:
            row(path)
        sys.stdout.flush()  # a reader that has gone is met here, and not when Python ends
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("unets.count: error: the output's reader has gone", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"unets.count: error: {error}", file=sys.stderr)
        return 2
    return 0


def row(path: str) -> None:
    """Prints a file's. Raises ValueError, in one line that names the file."""
    try:
        counts = count(network(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise ValueError(told if path in told else f"{path}: {told}") from error
    print(f"| `{path}` | " + " | ".join(f"{n / 1e6:,.1f} M" for n in counts.values()) + " |")


if __name__ == "__main__":
    sys.exit(main())
