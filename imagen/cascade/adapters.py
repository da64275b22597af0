"""LoRA adapters (Hu et al. 2021): put into a network by peft, stored in the file that diffusers' pipelines load.

An adapter is one safetensors file, ``pytorch_lora_weights.safetensors``: two matrices for each adapted layer, under the
layer's name with ``unet.`` in front, and alpha in the header. Networks of the DeepFloyd IF family have diffusers' names
for their layers, so that one file serves :class:`imagen.ImagenPipeline` and diffusers' ``IFPipeline`` alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from imagen.checks import check_choice
from imagen.errors import one_line
from imagen.stages.folder import RECORD, find_adapter, read_run
from imagen.stages.spec import SLOTS

logger = logging.get_logger(__name__)

METADATA = "lora_adapter_metadata"
PREFIX = "unet."
NAME = "default"
"""Of the adapter within a network; one at a time."""
ENDS = (".lora_A.weight", ".lora_B.weight")
OTHERWISE = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern")
"""Entries of peft's header that change what an adapter's matrices mean, where they are set."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as it is stored.

    Attributes:
        rank, alpha: its output is multiplied by alpha / rank.
        targets: names of the layers that it adapts, whole or from a dot to the end.
        tensors: its matrices by name, as ``down_blocks.1.attentions.0.to_q.lora_A.weight``.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    tensors: Mapping[str, Tensor]


def check_targets(unet: nn.Module, targets: Iterable[str]) -> None:
    """Raises ValueError unless every target ends the name of a layer that can be adapted, naming what there is."""
    known = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in known):
            ends = sorted({_end(name) for name in known})
            raise ValueError(f"no linear layer or convolution is called {target!r}; there are {', '.join(ends)}")


def _end(name: str) -> str:
    """The last part of a layer's name that is no number, with the number behind it: to_q, to_out.0."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def attach(unet: nn.Module, rank: int, alpha: float, targets: Iterable[str]) -> Any:
    """Put a new adapter into ``unet``, which answers as before until it is trained; all else in it is frozen.

    Returns:
        peft's LoraModel around the network, whose ``unload()`` and ``merge_and_unload()`` take the adapter out again.

    Raises:
        ValueError: peft is not installed, or a target that is no layer of the network.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise ValueError("LoRA needs the package peft: pip install peft") from None
    check_targets(unet, targets)
    return LoraModel(unet, LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)), NAME)  # type: ignore[arg-type]


def save_adapter(path: Path, tensors: Mapping[str, Tensor], rank: int, alpha: float, targets: Iterable[str]) -> None:
    """Write an adapter's file.

    Args:
        tensors: by their names in the network that peft changed (``....to_q.lora_A.default.weight``); what is no
            matrix of the adapter, such as the network's buffers, is left out.
    """
    renamed = {PREFIX + name.replace(f".{NAME}.", "."): tensor for name, tensor in tensors.items()}
    named = {name: tensor.contiguous() for name, tensor in renamed.items() if name.endswith(ENDS)}
    facts = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(targets)}
    text = json.dumps({PREFIX + name: value for name, value in facts.items()}, sort_keys=True)
    save_file(named, path, {METADATA: text})  # one entry: the order of several is left to chance


def read_adapter(place: str | Path) -> Adapter:
    """Read an adapter that was trained here or with diffusers.

    Raises:
        ValueError: none there, damaged, or with something else in it than a network's LoRA matrices of one rank.
    """
    path = find_adapter(place)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            facts = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({one_line(error)})") from error
    wrong = sorted(name for name in tensors if not name.startswith(PREFIX) or not name.endswith(ENDS))
    if wrong or not tensors:
        found = f"holds {wrong[0]!r}" if wrong else "is empty"
        raise ValueError(f"{path} {found}; expected LoRA matrices named {PREFIX}LAYER{ENDS[0]} and {ENDS[1]}")
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    alone = [layer for layer in layers if not all(layer + end in tensors for end in ENDS)]
    if alone:
        raise ValueError(f"{path} holds one of {alone[0]!r}'s two matrices; expected {ENDS[0]} and {ENDS[1]}")
    changed = [name for name in OTHERWISE if facts.get(PREFIX + name)]
    if changed:
        raise ValueError(f"{path} was trained with {changed[0]}, which is not supported; expected plain LoRA")
    ranks = {tensors[layer + ENDS[0]].shape[0] for layer in layers}
    if len(ranks) > 1:
        raise ValueError(f"{path} has matrices of the ranks {sorted(ranks)}; expected one rank for all layers")
    rank = ranks.pop()
    return Adapter(rank, float(facts.get(f"{PREFIX}lora_alpha", rank)), tuple(layers), tensors)


def trained_without_variance(place: str | Path) -> bool:
    """Whether the adapter's training left the network's learned variance behind (train.drop_variance)."""
    folder = find_adapter(place).parent
    return (folder / RECORD).is_file() and read_run(folder).drop_variance  # one from elsewhere does not say


def load_adapter(unet: nn.Module, place: str | Path) -> Any:
    """Put a stored adapter into ``unet``.

    Returns:
        what :func:`attach` returns.

    Raises:
        ValueError: as :func:`read_adapter` and :func:`attach`; the network holds one already, or it is another's.
    """
    if getattr(unet, "peft_config", None):
        raise ValueError("this network holds an adapter already; unload it, or merge it into the weights, first")
    adapter = read_adapter(place)
    modules = dict(unet.named_modules())
    for layer in adapter.targets:
        base = modules.get(layer)
        if not isinstance(base, nn.Linear | nn.Conv2d):
            raise ValueError(
                f"{place}: it adapts {layer!r}, which this network lacks; load the network it was trained on"
            )
        outs, ins, *kernel = base.weight.shape
        expected = ((adapter.rank, ins, *kernel), (outs, adapter.rank, *[1 for _ in kernel]))
        for end, shape in zip(ENDS, expected, strict=True):
            found = tuple(adapter.tensors[layer + end].shape)
            if found != shape:
                raise ValueError(
                    f"{place}: {layer}{end} has shape {found}, this network needs {shape}; load the network it was "
                    "trained on"
                )
    tuner = attach(unet, adapter.rank, adapter.alpha, adapter.targets)
    slots = dict(unet.named_parameters())
    with torch.no_grad():
        for name, tensor in adapter.tensors.items():
            slots[name.removesuffix("weight") + f"{NAME}.weight"].copy_(tensor)
    return tuner


class AdapterMixin:
    """The part of a pipeline that loads LoRA adapters, one for each stage at a time.

    What undoes an adapter is kept with its network, which several pipelines may share (``from_pipe``).
    """

    @property
    def _adapters(self) -> dict[str, Any]:
        held = {slot: getattr(getattr(self, f"{slot}_unet"), "lora_tuner", None) for slot in SLOTS}
        return {slot: tuner[0] for slot, tuner in held.items() if tuner is not None}

    def _taken(self, stage: str | None) -> Iterator[Any]:
        """The adapters of a stage (None: of every stage), which hold them no more."""
        if stage is not None and check_choice("stage", stage, SLOTS) not in self._adapters:
            raise ValueError(f"stage {stage!r} holds no adapter; load one with load_lora_weights")
        for slot, tuner in self._adapters.items():
            if stage in (None, slot):
                del getattr(self, f"{slot}_unet").lora_tuner
                yield tuner

    def load_lora_weights(self, adapter: str | Path, stage: str = "base") -> None:
        """Load an adapter into a stage's network, to act in all later calls.

        Args:
            adapter: its file or folder, or the ``run_dir`` of its training.
            stage: the slot: base, sr256 or sr1024.

        Raises:
            ValueError: no such stage here, one that holds an adapter already, no adapter there, one of another network.
        """
        unet = getattr(self, f"{check_choice('stage', stage, SLOTS)}_unet")
        if unet is None:
            raise ValueError(f"stage {stage!r} is not in this pipeline, which the adapter {str(adapter)!r} is for")
        unet.lora_tuner = (load_adapter(unet, adapter),)  # in a tuple: torch would take it for a part of the network
        if trained_without_variance(adapter) and unet.facts.learns_variance:
            logger.warning(
                f"{stage}: this adapter was trained with train.drop_variance, and the network still has its learned "
                f'variance: call imagen.cascade.variance.drop_variance(pipe, "{stage}")'
            )

    def unload_lora_weights(self, stage: str | None = None) -> None:
        """Take the adapter of a stage (None: of every stage) out again; the weights are those before, bit for bit."""
        for tuner in self._taken(stage):
            tuner.unload()

    def merge_lora_weights(self, stage: str | None = None) -> None:
        """Add the adapter of a stage (None: of every stage) to its weights, for good: to save, or to sample faster."""
        for tuner in self._taken(stage):
            tuner.merge_and_unload(safe_merge=True)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers', where no stage holds an adapter. Raises: ValueError, saying how to save one that does."""
        if self._adapters:
            held = ", ".join(self._adapters)
            raise ValueError(f"{held} holds an adapter: call merge_lora_weights or unload_lora_weights before saving")
        super().save_pretrained(*args, **kwargs)  # type: ignore[misc]
