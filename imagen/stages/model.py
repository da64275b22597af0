"""What a model's name means: a saved pipeline, here or on the Hub, or the run folders of stages. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from imagen.errors import ConfigError
from imagen.stages.folder import (
    HUB_PATTERNS,
    INDEX,
    PICKLES,
    RECORD,
    SavedStage,
    find_folder,
    read_index,
    read_model,
    read_run,
)
from imagen.stages.spec import SLOTS


class Model(NamedTuple):
    """A model that was found and looked at, but not loaded.

    Attributes:
        stages: those it holds, in the order of the cascade.
        folder: the pipeline's; None: each stage lies in a run of its own.
        presets: ways to sample them that the model stores, by name and slot; None: it stores none.
    """

    stages: dict[str, SavedStage]
    folder: Path | None = None
    presets: Any = None


def find_model(
    name: str | Path | Sequence[str | Path],
    variant: str | None = None,
    skip: Iterable[str] = (),
    pickled: bool = False,
    **hub: Any,
) -> Model:
    """The model that ``name`` means. A Hub id is fetched.

    Args:
        name: a pipeline's folder or Hub id; the folder of a run, or several, as a list or with commas between them.
        pickled: whether pickled weights of a pipeline will do; they are fetched, too.
        variant, skip, hub: as :func:`imagen.stages.folder.find_folder` takes them.

    Raises:
        ValueError: nothing there, or something else; stages that do not fit each other.
    """
    parts = _parts(name)
    if len(parts) > 1 or any((Path(parts[0]) / place).is_file() for place in (RECORD, f"model/{RECORD}")):
        return Model(_runs([Path(part) for part in parts]))
    folder = find_folder(parts[0], variant, skip, [*HUB_PATTERNS, PICKLES] if pickled else HUB_PATTERNS, **hub)
    if not (folder / INDEX).is_file() and (folder / "state").is_dir():
        raise ValueError(
            f"model {str(parts[0])!r} is the folder of a run that has exported no stage yet: let it train on"
        )
    return Model(read_model(folder, skip, pickled), folder, read_index(folder).get("presets"))


def _parts(name: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    """The folders or the id that a name holds, at least one. A folder's name may hold commas."""
    if not isinstance(name, str | Path):
        if not name:
            raise ValueError("the list of runs is empty; give the folder of one at least")
        return list(name)
    whole = not str(name).strip() or Path(name).is_dir() or "," not in str(name)
    return [name] if whole else [part.strip() for part in str(name).split(",")]


def _runs(folders: Sequence[Path]) -> dict[str, SavedStage]:
    stages: dict[str, SavedStage] = {}
    for folder in folders:
        stage = read_run(folder)
        if stage.slot in stages:
            raise ValueError(f"the model names two runs of the stage {stage.slot}, the second is {str(folder)!r}")
        stages[stage.slot] = stage
    ordered = {slot: stages[slot] for slot in SLOTS if slot in stages}
    check_chain(ordered)
    return ordered


def check_chain(stages: Mapping[str, SavedStage]) -> None:
    """Raises ConfigError where stages cannot be one pipeline.

    That is where one does not start from the size that the one before it makes, is an adapter without its network,
    reads text otherwise, or keeps something else of a condition.
    """
    for (before, made), (slot, stage) in pairwise(stages.items()):
        if stage.defaults.lowres_size != made.defaults.size:
            raise ConfigError(
                f"{slot} starts from {stage.defaults.lowres_size} px but {before} makes {made.defaults.size} px: "
                "train one anew"
            )
    first = next(iter(stages.values()))
    conditions: dict[str, Any] = {}
    for slot, stage in stages.items():
        if stage.adapter_of is not None:
            raise ConfigError(
                f"{slot} is an adapter of {stage.adapter_of!r}, not a network: load it into a pipeline with "
                "sample.py --lora or ImagenPipeline.load_lora_weights"
            )
        if stage.text != first.text:
            raise ConfigError(f"{first.slot} reads text as {first.text}, {slot} as {stage.text}: train one anew")
        for name, stored in stage.conditions.items():
            if conditions.setdefault(name, stored) != stored:
                raise ConfigError(f"{slot} was trained with {name} {stored}, a stage before it with {conditions[name]}")
