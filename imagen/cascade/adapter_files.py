"""Files of LoRA adapters (Hu et al. 2021), in every form that diffusers and peft have written.

Ours is one safetensors file, ``pytorch_lora_weights.safetensors``: two matrices for each adapted layer, under the
layer's name with ``unet.`` in front, and in the header what peft's ``LoraConfig`` is made of. Networks of the DeepFloyd
IF family have diffusers' names for their layers, so that one file serves :class:`imagen.ImagenPipeline` and diffusers'
``IFPipeline`` alike.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from imagen.disk import read_json
from imagen.errors import one_line
from imagen.stages.folder import PEFT_ADAPTER, RECORD, find_adapter, read_run

METADATA = "lora_adapter_metadata"
PREFIX = "unet."
PREFIXES = (PREFIX, "base_model.model.", "")
"""Before layers' names: of diffusers' pipelines, of peft, of a network saved alone."""
NAME = "default"
"""Of an adapter that is trained, within its network."""
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
BIAS, LENGTHS = ".lora_B.bias", (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
"""Beside the matrices: a bias, and the lengths of DoRA (Liu et al. 2024)."""
EARLIER = re.compile(r"(.*?)(?:_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight")
"""Names as diffusers wrote them before it left adapters to peft, ``...processor.to_q_lora.down.weight`` the first."""
PROCESSOR = re.compile(r"(?<![^.])processor\.")
ALPHA = re.compile(r"(.*?)(?:_lora|\.lora|\.lora_linear_layer)?\.alpha")
WHICH = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "r")
"""Of peft's settings, those that the matrices say themselves."""
TRAINING = ("lora_dropout", "init_lora_weights")
"""Of peft's settings, those of a training, ..."""
OTHER_WEIGHTS = ("pissa", "olora", "corda", "loftq")
"""... of which these ways to begin change the network's own weights, too."""
MORE = ("modules_to_save", "target_parameters", "trainable_token_indices", "layer_replication")
"""Of peft's settings, those that train more than matrices beside layers."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as it is stored.

    Attributes:
        tensors: its matrices by peft's names, as ``down_blocks.1.attentions.0.to_q.lora_A.weight``.
        config: arguments of peft's ``LoraConfig``: r, lora_alpha, target_modules (the layers, by their whole names),
            rank_pattern and what else its training set.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]

    @property
    def layers(self) -> list[str]:
        """Names of the layers that it adapts."""
        return list(self.config["target_modules"])


def save_adapter(path: Path, tensors: Mapping[str, Tensor], rank: int, alpha: float, targets: Iterable[str]) -> None:
    """Write an adapter's file.

    Args:
        tensors: by their names in the network that peft changed (``....to_q.lora_A.default.weight``); what is no
            matrix of the adapter, such as the network's buffers, is left out.
    """
    renamed = {PREFIX + name.replace(f".{NAME}.", "."): tensor for name, tensor in tensors.items()}
    named = {name: tensor.contiguous() for name, tensor in renamed.items() if name.endswith((DOWN, UP))}
    facts = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(targets)}
    text = json.dumps({PREFIX + name: value for name, value in facts.items()}, sort_keys=True)
    save_file(named, path, {METADATA: text})  # one entry: the order of several is left to chance


def read_adapter(place: str | Path | Mapping[str, Tensor]) -> Adapter:
    """Read an adapter that was trained here, with diffusers (since 2023) or with peft.

    Args:
        place: its file, its folder, the ``run_dir`` of its training, or its tensors by name.

    Raises:
        ValueError: none there, damaged, or with something else in it than what a network's LoRA or DoRA has.
    """
    told, tensors, facts = ("the adapter", dict(place), {}) if isinstance(place, Mapping) else _read_file(place)
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()):
        raise ValueError(f"{told} holds something else than tensors by name")
    if not tensors:
        raise ValueError(f"{told} is empty; expected LoRA matrices named {PREFIX}LAYER{DOWN} and {UP}")
    prefix = next(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors))
    strange = sorted(name for name in tensors if not name.startswith(prefix))
    tensors, alphas = _renamed({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    strange += sorted(prefix + name for name in tensors if not name.endswith((DOWN, UP, BIAS, *LENGTHS)))
    if strange:
        raise ValueError(f"{told} holds {strange[0]!r}; expected LoRA matrices named {PREFIX}LAYER{DOWN} and {UP}")
    _check_matrices(told, tensors)
    facts = {name.removeprefix(prefix): value for name, value in facts.items()}
    _check_settings(told, facts)
    _check_dora(told, tensors, facts)
    return Adapter(tensors, _config(tensors, facts, alphas))


def _read_file(place: str | Path) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """How the adapter's file is called, its tensors, and what its header (or the file beside it) says."""
    path = find_adapter(place)
    facts: Any = {}
    try:
        if path.suffix == ".bin":
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
                facts = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except Exception as error:  # safetensors', pickle's and json's own, and the system's: to the user all are one
        reason = f"{path} is no whole {'safetensors' if path.suffix != '.bin' else 'torch'} file"
        raise ValueError(f"{reason} ({one_line(error)})") from error
    if path.name == PEFT_ADAPTER:
        facts = read_json(path.with_name("adapter_config.json"))
    if not isinstance(facts, dict) or not isinstance(tensors, dict):
        raise ValueError(f"{path} holds no adapter: its tensors or its header are no dict")
    return str(path), tensors, facts


def _renamed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The matrices by peft's names, and the alphas that earlier files hold for some layers."""
    found, alphas = {}, {}
    for full, tensor in tensors.items():
        name = PROCESSOR.sub("", full)
        if match := EARLIER.fullmatch(name):
            found[_layer(match[1]) + {"down": DOWN, "up": UP}[match[2]]] = tensor
        elif match := ALPHA.fullmatch(name):
            alphas[_layer(match[1])] = float(tensor)
        else:
            found[name] = tensor
    return found, alphas


def _layer(name: str) -> str:
    """The layer that an earlier file means: what is called to_out there is the first of two."""
    return f"{name}.0" if name.endswith("to_out") else name


def _check_matrices(told: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a layer has one matrix alone, or one holds something else than finite floats."""
    for layer in sorted({name.rsplit(".lora_", 1)[0] for name in tensors}):
        if not {layer + DOWN, layer + UP} <= tensors.keys():
            raise ValueError(f"{told} holds one of {layer!r}'s two matrices; expected {DOWN} and {UP}")
    for name, tensor in tensors.items():
        whole = tensor.is_floating_point() and not tensor.is_meta and tensor.ndim and len(tensor)
        if not whole or not tensor.isfinite().all():
            raise ValueError(
                f"{told}: {name} holds {tensor.dtype} of shape {tuple(tensor.shape)}; expected finite floats"
            )


def _check_settings(told: str, facts: Mapping[str, Any]) -> None:
    """Raises ValueError for settings of peft that mean something else than LoRA beside the network as it is."""
    if facts.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{told} is an adapter of peft's type {facts['peft_type']}; expected LORA")
    strengths = [facts.get("lora_alpha", 1.0), *(facts.get("alpha_pattern") or {}).values()]
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in strengths):
        raise ValueError(f"{told} says the strengths {strengths} (lora_alpha, alpha_pattern); expected finite numbers")
    more = [name for name in MORE if facts.get(name)] + ["bias"] * (facts.get("bias", "none") != "none")
    if more:
        raise ValueError(f"{told} was trained with {more[0]}, which is more than LoRA and is not supported")
    start = str(facts.get("init_lora_weights")).lower()
    if start.startswith(OTHER_WEIGHTS):
        raise ValueError(
            f"{told} was trained with init_lora_weights {start!r}, which changes the network's own weights: save it "
            "with peft's path_initial_model_for_weight_conversion"
        )


def _check_dora(told: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Raises ValueError where some layers have DoRA's lengths and others not, or the header says otherwise."""
    layers = {name.rsplit(".lora_", 1)[0] for name in tensors}
    without = sorted(layers - {name.rsplit(".lora_", 1)[0] for name in tensors if name.endswith(LENGTHS)})
    if without and len(without) < len(layers):
        raise ValueError(
            f"{told} has DoRA's lengths for some layers and not for {without[0]!r}, which is not supported"
        )
    if facts.get("use_dora", not without) != (not without):
        raise ValueError(f"{told} {'lacks' if without else 'holds'} DoRA's {LENGTHS[0]}, and its header says otherwise")


def _config(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], alphas: Mapping[str, float]) -> dict[str, Any]:
    """Arguments of peft's LoraConfig; without alpha an adapter acts as its matrices are: alpha is the rank."""
    ranks = {name.removesuffix(DOWN): len(tensor) for name, tensor in tensors.items() if name.endswith(DOWN)}
    config = {name: value for name, value in facts.items() if name not in (*WHICH, *TRAINING)}
    config["r"], config["rank_pattern"] = _most(ranks)
    if "lora_alpha" not in facts:
        strengths = {layer: alphas.get(layer, float(rank)) for layer, rank in ranks.items()}
        config["lora_alpha"], config["alpha_pattern"] = _most(strengths)
    config["use_dora"] = any(name.endswith(LENGTHS) for name in tensors)
    config["lora_bias"] = any(name.endswith(BIAS) for name in tensors)
    return {**config, "target_modules": sorted(ranks)}


def _most(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What most layers have, and those that have another, as peft's patterns from the start of a name."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {f"^{re.escape(layer)}": value for layer, value in values.items() if value != usual}


def trained_without_variance(place: str | Path | Mapping[str, Tensor]) -> bool:
    """Whether the adapter's training left the network's learned variance behind (train.drop_variance)."""
    if isinstance(place, Mapping):
        return False
    folder = find_adapter(place).parent
    return (folder / RECORD).is_file() and read_run(folder).drop_variance  # one from elsewhere does not say
