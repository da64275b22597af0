"""LoRA adapters in a network: put in by peft, several at once, each at a weight of its own."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from imagen.cascade.adapter_files import DOWN, NAME, UP, Adapter, read_adapter
from imagen.errors import one_line


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


def _peft() -> Any:
    """The package. Raises: ValueError where it is not installed."""
    try:
        import peft
    except ImportError:
        raise ValueError("LoRA needs the package peft: pip install peft") from None
    return peft


def attach(unet: Any, rank: int, alpha: float, targets: Iterable[str]) -> None:
    """Put a new adapter into ``unet``, which answers as before until it is trained; all else in it is frozen.

    Raises:
        ValueError: peft is not installed, or a target that is no layer of the network.
    """
    peft = _peft()
    check_targets(unet, targets)
    unet.add_adapter(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)), NAME)


def load_adapter(unet: Any, place: str | Path | Mapping[str, Tensor], name: str | None = None, **how: Any) -> str:
    """Put a stored adapter into ``unet``, beside those it holds.

    Args:
        place: as :func:`imagen.cascade.adapter_files.read_adapter` takes it.
        name: of the adapter in the network; None: default_0, default_1, ...
        how: further arguments of diffusers' ``load_lora_adapter``.

    Returns:
        the adapter's name.

    Raises:
        ValueError: as :func:`imagen.cascade.adapter_files.read_adapter`; the name is taken, or it is another network's.
    """
    peft, adapter = _peft(), read_adapter(place)
    told = "the adapter" if isinstance(place, Mapping) else str(place)
    held = getattr(unet, "peft_config", None) or {}
    check_apart(unet)
    if name is None:
        name = next(f"default_{number}" for number in range(len(held) + 1) if f"default_{number}" not in held)
    if "." in name or not name:
        raise ValueError(f"an adapter cannot be called {name!r}: give a name without dots")
    if (name in held) != how.get("hotswap", False):
        there = f"there are {', '.join(held)}" if held else "there is none"
        reason = (
            "is in use; delete it first, or give another name" if name in held else f"is not there to swap; {there}"
        )
        raise ValueError(f"adapter {name!r} {reason}")
    _check_fits(unet, adapter, told)
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    config = {key: value for key, value in adapter.config.items() if key in known or value not in (None, False, {}, [])}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are meant
            unet.load_lora_adapter(dict(adapter.tensors), prefix=None, adapter_name=name, metadata=config, **how)
    except TypeError as error:
        strange = sorted(config.keys() - known)
        raise ValueError(
            f"{told} was trained with {strange or one_line(error)}, which this peft does not know: upgrade it"
        ) from error
    return name


def check_apart(unet: nn.Module) -> None:
    """Raises ValueError where adapters are fused into the weights, so that no change of them would act."""
    if any(layer.merged for layer in adapted_layers(unet)):
        raise ValueError(
            "the adapters of this network are fused into its weights: call unfuse_lora first, or unload_lora_weights "
            "to keep the weights as they are"
        )


def _check_fits(unet: nn.Module, adapter: Adapter, told: str) -> None:
    """Raises ValueError unless the network has the adapter's layers, in its shapes."""
    modules = dict(unet.named_modules())
    for layer in adapter.layers:
        base = modules.get(layer)
        base = getattr(base, "base_layer", base)  # of a layer that holds an adapter already
        if isinstance(base, nn.Conv2d):
            outs, ins, kernel = base.out_channels, base.in_channels // base.groups, base.kernel_size
        elif isinstance(base, nn.Linear):
            outs, ins, kernel = base.out_features, base.in_features, ()
        else:
            raise ValueError(
                f"{told}: it adapts {layer!r}, which this network lacks; load the network it was trained on"
            )
        rank = len(adapter.tensors[layer + DOWN])
        for end, shape in ((DOWN, (rank, ins, *kernel)), (UP, (outs, rank, *[1 for _ in kernel]))):
            found = tuple(adapter.tensors[layer + end].shape)
            if found != shape:
                raise ValueError(
                    f"{told}: {layer}{end} has shape {found}, this network needs {shape}; load the network it was "
                    "trained on"
                )


def adapted_layers(network: nn.Module) -> list[Any]:
    """The layers that hold adapters."""
    return [module for module in network.modules() if hasattr(module, "base_layer")]


def fuse(network: Any, scale: float = 1.0, safe_fusing: bool = False, names: list[str] | None = None) -> None:
    """As diffusers' fuse_lora, once, and with weights and scales back where the sum is not finite."""
    check_apart(network)
    scales = [(layer, dict(layer.scaling)) for layer in adapted_layers(network)]
    try:
        network.fuse_lora(scale, safe_fusing, names)
    except ValueError:
        for layer, before in scales:
            if layer.merged:  # before the one that failed
                layer.unmerge()
            layer.scaling.update(before)
        raise


def active_in(network: Any) -> list[str]:
    """Names of the adapters that act in a network."""
    return list(next((layer.active_adapters for layer in adapted_layers(network)), []))
