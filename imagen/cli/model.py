"""What ``--model`` names: a saved pipeline, here or on the Hub, or the run folders of stages, commas between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imagen.stages.folder import INDEX, RECORD, SavedStage, find_folder, read_model, read_run
from imagen.stages.spec import SLOTS, StageDefaults

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
    if len(parts) > 1 or any((parts[0] / place).is_file() for place in (RECORD, f"model/{RECORD}")):
        return _runs(parts)
    folder = find_folder(name)
    if not (folder / INDEX).is_file() and (folder / "state").is_dir():
        raise ValueError(f"model {name!r} is the folder of a run that has exported no stage yet: let it train on")
    return Model(_defaults(read_model(folder)), partial(_load_folder, folder))


def _defaults(stages: Mapping[str, SavedStage]) -> dict[str, StageDefaults]:
    return {slot: stage.defaults for slot, stage in stages.items()}


def _load_folder(folder: Path, dtype: str) -> ImagenPipeline:
    import torch

    from imagen.pipeline import ImagenPipeline

    return ImagenPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))


def _runs(folders: list[Path]) -> Model:
    from imagen.cascade.training.compose import check_chain

    stages: dict[str, SavedStage] = {}
    places: dict[str, Path] = {}
    for folder in folders:
        stage = read_run(folder)
        if stage.slot in stages:
            raise ValueError(f"--model names two runs of the stage {stage.slot}, the second is {str(folder)!r}")
        stages[stage.slot], places[stage.slot] = stage, folder
    ordered = {slot: stages[slot] for slot in SLOTS if slot in stages}
    check_chain(ordered)
    return Model(_defaults(ordered), partial(_compose, {slot: places[slot] for slot in ordered}))


def _compose(folders: dict[str, Path], dtype: str) -> ImagenPipeline:
    import torch

    from imagen.cascade.training.compose import compose

    pipeline: ImagenPipeline = compose(folders, dtype=getattr(torch, dtype))
    return pipeline
