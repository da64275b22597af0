"""Data of a training's configuration as something to look at: whole pictures, neither mirrored nor cut at random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from imagen.data import ShapesDataset, Want, make_source
from imagen.data.config import DataConfig
from imagen.data.make import stored_source
from imagen.data.pictures import PictureDataset, StreamDataset
from imagen.errors import one_line

CONFIGS = (".yaml", ".yml")


def data_section(path: Path) -> DataConfig:
    """The section ``data`` of a YAML file, as training reads it; other sections are not looked at.

    Raises:
        ValueError: no such file, no such section, or one that cannot be.
    """
    where = f"configuration {str(path)!r}"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not valid YAML: {one_line(error)}") from error
    section: Any = tree.get("data") if isinstance(tree, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"{where} has no section data; expected one with kind and path, as of training")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataConfig, "data")
    try:
        found: DataConfig = parser.instantiate(parser.parse_object({"data": section})).data
    except Exception as error:  # argparse and jsonargparse have their own families
        raise ValueError(f"{where}: {one_line(error)}") from error
    return found


def data_source(
    data: DataConfig, size: int | None = None, seed: int = 0
) -> PictureDataset | StreamDataset | ShapesDataset:
    """The pictures that ``data`` names: whole, where they are not square their middle, and not mirrored.

    Args:
        size: side in pixels that their samples have; None: only records and captions are asked for, and the shapes
            world, which is drawn, is drawn at 64 px.
        seed: of the pictures of the shapes world.

    Raises:
        ValueError: nothing there, or not what the section says.
    """
    data = replace(data, crop=None)
    want = Want(size or 64, captions="optional")
    try:
        if data.kind == "shapes":
            return make_source(replace(data, fields={}), want, seed)
        return stored_source(replace(data, flip=False, square="center"), want)
    except OSError as error:
        raise ValueError(f"data.path {data.path!r} cannot be read: {one_line(error)}") from error
