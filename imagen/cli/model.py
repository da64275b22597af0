"""What ``--model`` names: a saved pipeline, here or on the Hub, or the run folders of stages, commas between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imagen.cascade.folder import INDEX, check_folder, find_folder
from imagen.cascade.stages import StageDefaults

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Model:
    """A model that was found and looked at, but not loaded.

    Attributes:
        stages: defaults of the stages it holds, in the order of the cascade.
        load: torch dtype's name -> the pipeline.
    """

    stages: dict[str, StageDefaults]
    load: Callable[[str], ImagenPipeline]


def find_model(name: str) -> Model:
    """The model that ``name`` means. A Hub id is fetched.

    Raises:
        ValueError: nothing there, or something else; stages that do not fit each other.
    """
    parts = [Path(name)] if Path(name).is_dir() else [Path(part.strip()) for part in name.split(",")]
    if len(parts) > 1 or any((parts[0] / place).is_file() for place in ("stage.json", "model/stage.json")):
        return _runs(parts)
    folder = find_folder(name)
    if not (folder / INDEX).is_file() and (folder / "state").is_dir():
        raise ValueError(f"model {name!r} is the folder of a run that has exported no stage yet: let it train on")
    return Model(check_folder(folder), partial(_load_folder, folder))


def _load_folder(folder: Path, dtype: str) -> ImagenPipeline:
    import torch

    from imagen.pipeline import ImagenPipeline

    return ImagenPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))


def _runs(folders: list[Path]) -> Model:
    from imagen.training.compose import check_chain
    from imagen.training.export import SLOTS, read_stage

    records = {}
    for folder in folders:
        record = read_stage(folder)
        if record["name"] in records:
            raise ValueError(f"--model names two runs of the stage {record['name']}, the second is {str(folder)!r}")
        records[record["name"]] = (folder, record)
    ordered = {name: records[name] for name in SLOTS if name in records}
    check_chain({name: record for name, (_, record) in ordered.items()})
    stages = {SLOTS[name]: StageDefaults.from_dict(record["stage"]) for name, (_, record) in ordered.items()}
    return Model(stages, partial(_compose, {name: folder for name, (folder, _) in ordered.items()}))


def _compose(folders: dict[str, Path], dtype: str) -> ImagenPipeline:
    import torch

    from imagen.training.compose import compose

    pipeline: ImagenPipeline = compose(folders, dtype=getattr(torch, dtype))
    return pipeline
