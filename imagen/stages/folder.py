"""Saved models and stages: found here or fetched from the Hub, read and checked before anything heavy is loaded.

Two kinds of folder hold stages. A pipeline's (``model_index.json``) has a network and a scheduler for each slot.
A run's (its ``model`` folder with ``stage.json``) has one stage, or an adapter of one. Both are read as
:class:`SavedStage`. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagen.disk import read_json, write_text
from imagen.stages.places import DEMO, demo_folder, recall, remember
from imagen.stages.spec import FORMAT_VERSION, SLOTS, StageDefaults, check_version, read_stages, slot_named
from imagen.text.reading import TextDefaults

INDEX, RECORD = "model_index.json", "stage.json"
ADAPTER = "pytorch_lora_weights.safetensors"
PEFT_ADAPTER = "adapter_model.safetensors"
ADAPTERS = (ADAPTER, f"model/{ADAPTER}", PEFT_ADAPTER, "pytorch_lora_weights.bin")
"""Where an adapter lies in a folder: as we and diffusers write it, in a run, as peft does, as diffusers did."""
PIPELINE_CLASS = "ImagenPipeline"
HUB_PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors", "*.md"]
PICKLES = "*.bin"


@dataclass(frozen=True)
class SavedStage:
    """A stage as it lies in a folder.

    Attributes:
        slot: base, sr256 or sr1024.
        defaults: sizes and how it samples.
        unet, scheduler: folders of its network and its scheduler.
        text, max_length: how it reads text, and the most tokens.
        encoder: folder or Hub id of the text encoder it was trained with; None without text.
        adapter_of: for an adapter, the network that it was trained on; None for a whole network.
        drop_variance: for an adapter, whether its training left the network's learned variance behind.
        conditions: what is stored of its conditions beside text, by name.
    """

    slot: str
    defaults: StageDefaults
    unet: Path
    scheduler: Path
    text: TextDefaults
    max_length: int
    encoder: str | None = None
    adapter_of: str | None = None
    drop_variance: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)


def find_folder(
    name: str | Path,
    variant: str | None = None,
    skip: Iterable[str] = (),
    patterns: Sequence[str] = HUB_PATTERNS,
    **hub: Any,
) -> Path:
    """A model's folder: ``name`` itself, or the Hub's snapshot of that id (nothing pickled is fetched).

    diffusers' own download step refuses repositories whose components are classes of other packages, so a Hub id is
    fetched as it stands and then loaded like any folder.

    Args:
        variant: fetch these weights too (``fp16``: ``*.fp16.safetensors``); without it, none of any variant.
        skip: components that are not wanted; they are not fetched.
        patterns: of the files to fetch; none that ``skip`` and ``variant`` leave out is.
        hub: arguments of ``huggingface_hub.snapshot_download`` (revision, token, cache_dir, local_files_only, ...).

    Raises:
        ValueError: neither a folder nor an id that the Hub (or its cache here) could give.
    """
    folder = Path(name)
    if not str(name).strip():
        raise ValueError(f"model {name!r} is empty; give a folder with {INDEX}, or a Hub id (owner/name)")
    if folder.is_dir():
        return folder
    text = str(name)
    if text == DEMO:
        return demo_folder()
    if folder.is_file():
        raise ValueError(f"model {text!r} is a file; give the folder that holds {INDEX}")
    if folder.is_absolute() or text.startswith(".") or text.count("/") != 1:
        raise ValueError(f"model {text!r}: no such folder; give a folder with {INDEX}, or a Hub id (owner/name)")
    from huggingface_hub import snapshot_download

    ignore = [f"{component}/*" for component in skip] + ([] if variant else ["*.*.safetensors", f"*.{PICKLES}"])
    try:
        return Path(snapshot_download(text, allow_patterns=list(patterns), ignore_patterns=ignore, **hub))
    except Exception as error:  # its own, httpx's and the system's errors: to the user all are one
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model {text!r} is no folder here and could not be fetched from the Hub: {reason}") from error


def read_index(folder: Path) -> dict[str, Any]:
    """The parsed ``model_index.json`` of a model folder. Subclasses of ours write their own name, and our entries.

    Raises:
        ValueError: it is missing, is not JSON, or belongs to another pipeline.
    """
    where = f"model folder {str(folder)!r}"
    if not (folder / INDEX).exists():
        raise ValueError(f"{where} holds no {INDEX}; give the folder of a saved pipeline")
    try:
        index = read_json(folder / INDEX)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; save the model again") from error
    name = index.get("_class_name")
    if name != PIPELINE_CLASS and not (isinstance(name, str) and "format_version" in index):
        raise ValueError(f"{where} holds a {name}, not an {PIPELINE_CLASS}; load it with its own class")
    return index


def read_model(folder: Path, skip: Iterable[str] = (), pickled: bool = False) -> dict[str, SavedStage]:
    """The stages of a pipeline folder (network and scheduler both), by slot, in the order of the cascade.

    Args:
        skip: components that are not wanted, and need not be there.
        pickled: whether pickled weights will do.

    Raises:
        ValueError: the index is unreadable or newer than this code, or a listed component has no folder or no weights.
    """
    index = read_index(folder)
    listed = {k for k, v in index.items() if isinstance(v, list) and len(v) == 2 and v[0] is not None} - set(skip)
    for component in sorted(listed):
        place = folder / component
        if not place.is_dir():
            raise ValueError(f"model folder {str(folder)!r}: {component} is listed but {component}/ is missing")
        if component.endswith(("_unet", "text_encoder")):
            _check_weights(place, f"model folder {str(folder)!r}: {component}/", pickled)
        if component.endswith("_unet"):
            _check_class(folder, component, index[component][1])
    return {
        slot: stage
        for slot, stage in _of_index(folder, index).items()
        if {f"{slot}_unet", f"{slot}_scheduler"} <= listed
    }


def _check_weights(place: Path, where: str, pickled: bool) -> None:
    """Raises ValueError where a folder holds no weights, or only such as are not to be unpickled."""
    if any(place.glob("*.safetensors")):
        return
    if not any(place.glob(PICKLES)):
        raise ValueError(f"{where} holds no *.safetensors weights")
    if not pickled:
        raise ValueError(
            f"{where} holds pickled weights ({PICKLES}) alone: ImagenPipeline.from_pretrained(..., "
            "use_safetensors=False) loads them, and save_pretrained then writes safetensors"
        )


def _check_class(folder: Path, component: str, named: str) -> None:
    """Raises ValueError where a network's own configuration names another class than the index."""
    config = folder / component / "config.json"
    held = read_json(config).get("_class_name") if config.is_file() else None
    if held not in (None, named):
        raise ValueError(
            f"model folder {str(folder)!r}: {component}/ holds a {held}, but {INDEX} names a {named}: save or "
            "fetch the model again"
        )


def _of_index(folder: Path, index: Mapping[str, Any]) -> dict[str, SavedStage]:
    """What an index says of every slot, whether its parts are there or not. Raises: ValueError, naming the folder."""
    try:
        stages = read_stages(index.get("stages"), index.get("format_version"))
        text = TextDefaults.from_dict(index.get("text"))
    except ValueError as error:
        raise ValueError(f"model folder {str(folder)!r}: {error}") from error
    encoder = str(folder) if (folder / "text_encoder").is_dir() else None
    length, conditions = index.get("max_length", 128), index.get("conditions") or {}
    places = {slot: (folder / f"{slot}_unet", folder / f"{slot}_scheduler") for slot in SLOTS}
    return {
        slot: SavedStage(slot, stages[slot], *places[slot], text, length, encoder, conditions=conditions)
        for slot in SLOTS
    }


def read_run(folder: Path) -> SavedStage:
    """The stage that a run exported; ``folder`` is the run's or its model folder.

    Raises:
        ValueError: no exported stage there, one of a newer format, or a record that is none.
    """
    root = folder / "model" if (folder / "model" / RECORD).is_file() else folder
    try:
        record = read_json(root / RECORD)
    except ValueError:
        held = f"{str(folder)!r} holds no exported stage (model/{RECORD})"
        what = held if folder.is_dir() else f"there is no folder {str(folder)!r}"
        raise ValueError(f"{what}: give the run_dir of a training") from None
    try:
        version = check_version(record.get("format_version"), str(root / RECORD))
        text = dict(record["text"])
        encoder, length = text.pop("encoder"), text.pop("max_length")
        encoder = encoder and recall(encoder, root, record.get("encoder_folder"))
        slot, defaults = slot_named(record["name"]), StageDefaults.from_dict(record["stage"], "stage", version)
        kept = (record.get("adapter_of"), bool(record.get("drop_variance", False)), record.get("conditions") or {})
        reading = TextDefaults.from_dict(text)
        return SavedStage(slot, defaults, root / "unet", root / "scheduler", reading, length, encoder, *kept)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{root / RECORD} is no record of a stage ({error!r}): export it again") from error


def write_run(folder: Path, stage: SavedStage, **facts: Any) -> None:
    """Write what :func:`read_run` reads into a run's model folder, whole or not at all.

    Args:
        facts: further entries for people to read (step, images).
    """
    adapter = {"adapter_of": stage.adapter_of, "drop_variance": stage.drop_variance}
    place = remember(stage.encoder, folder)
    record = {
        "format_version": FORMAT_VERSION,
        "name": stage.slot,
        **facts,
        "stage": stage.defaults.to_dict(),
        "text": {"encoder": stage.encoder, "max_length": stage.max_length, **stage.text.to_dict()},
        **({} if place is None else {"encoder_folder": place}),
        **({} if stage.adapter_of is None else adapter),
        **({"conditions": dict(stage.conditions)} if stage.conditions else {}),
    }
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def read_saved(folder: Path) -> dict[str, SavedStage]:
    """The stages of a folder of either kind. Raises: ValueError, as :func:`read_model` and :func:`read_run`."""
    if (folder / INDEX).is_file():
        return read_model(folder)
    stage = read_run(folder)
    return {stage.slot: stage}


def find_adapter(place: str | Path) -> Path:
    """The adapter's file: ``place`` itself, in that folder, or in the model folder of that run. Raises: ValueError."""
    path = Path(place)
    for file in (path, *(path / name for name in ADAPTERS)):
        if file.is_file():
            return file
    raise ValueError(
        f"{str(place)!r} holds no adapter; give a {ADAPTER}, its folder, or the run_dir of a LoRA training"
    )


def network_folder(folder: str | Path) -> Path:
    """The folder of a network itself: ``folder``, or the one inside where it is a run or a run's model folder."""
    root = Path(folder)
    places = (root / "model" / "unet", root / "unet")
    return next((place for place in places if place.is_dir()), root)


def stage_beside(network: Path) -> SavedStage | None:
    """The stage whose network lies in the folder ``network``; None where nothing there says.

    Raises:
        ValueError: an index or record that no stage has.
    """
    root, slot = network.parent, network.name.removesuffix("_unet")
    if (root / INDEX).is_file() and slot in SLOTS:
        return _of_index(root, read_index(root))[slot]
    return read_run(root) if (root / RECORD).is_file() else None


def check_complete(place: Path, expected: Iterable[str], pickled: bool = False) -> None:
    """Check that a network's files hold its tensors: diffusers fills what is missing with whatever lies in memory.

    Args:
        place: folder of the network, of which all safetensors are looked at.
        expected: names of its tensors.
        pickled: look at pickles, too.

    Raises:
        ValueError: one is missing.
    """
    from safetensors import safe_open

    names: set[str] = set()
    parts: dict[str, set[str]] = {}
    for path in place.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            names.update(file.keys())
            parts |= _parts(file.metadata() or {})
    for path in place.glob(PICKLES) if pickled else ():
        names.update(_pickled_names(path))
    missing = sorted(set(expected) - names - {name for name, of in parts.items() if of <= names})
    if missing:
        raise ValueError(f"{place} lacks {len(missing)} tensors of the network ({missing[0]}, ...); fetch it again")


def _parts(notes: Mapping[str, str]) -> dict[str, set[str]]:
    """Tensors that torchao wrote in parts (``a._weight_qdata``, ``a._weight_scale``: ``a.weight``), with their names.

    Args:
        notes: a file's metadata, in which torchao says which tensor has which parts.
    """
    found = {}
    for name in json.loads(notes.get("tensor_names", "[]")):
        module, _, leaf = name.rpartition(".")
        parts = json.loads(notes.get(name, "{}")).get("_tensor_data_names", [])
        if parts:
            found[name] = {f"{module}._{leaf}_{part}" for part in parts}
    return found


def _pickled_names(path: Path) -> Iterable[str]:
    """Names of the tensors in a pickle, of which nothing is run and no weight is read."""
    import torch

    tensors: Mapping[str, object] = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    return tensors.keys()
