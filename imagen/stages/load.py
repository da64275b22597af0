"""The parts of a saved stage, loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import unets
from imagen.disk import read_json
from imagen.errors import one_line
from imagen.stages.folder import check_complete


def load_network(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The network saved in a folder, without the folder's name, which is nobody's business once composed.

    Raises:
        ValueError: a folder without one, or one that lacks tensors.
    """
    try:
        kind = read_json(folder / "config.json")["_class_name"]
        unet = getattr(unets, kind).from_pretrained(folder, torch_dtype=dtype)
        check_complete(folder, unet.state_dict())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder} holds no network: {one_line(error)}") from error
    unet.register_to_config(_name_or_path="")
    return unet


def load_scheduler(folder: Path) -> Any:
    """The scheduler saved in a folder. Raises: ValueError for a folder without one."""
    import diffusers

    from imagen.diffusion import sampling

    try:
        kind = read_json(folder / "scheduler_config.json")["_class_name"]
        return (getattr(sampling, kind, None) or getattr(diffusers, kind)).from_pretrained(folder)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder} holds no scheduler: {one_line(error)}") from error
