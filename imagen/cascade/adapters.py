"""LoRA adapters in a network: put in by peft, several at once, each at a weight of its own."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from imagen.cascade.adapter_files import BIAS, DOWN, LENGTHS, NAME, UP, Adapter, read_adapter
from imagen.errors import one_line


def check_targets(unet: nn.Module, targets: Iterable[str]) -> None:
    """Raises ValueError unless every target ends the name of a layer that can be adapted, naming what there is."""
    known = {name: isinstance(module, nn.Linear | nn.Conv2d) for name, module in unet.named_modules() if name}
    for target in targets:
        named = [name for name in known if f".{name}".endswith(f".{target}")]
        other = [name for name in named if not known[name]]
        if not named or len(other) == len(named):
            ends = sorted({_end(name) for name, fits in known.items() if fits})
            raise ValueError(f"no linear layer or convolution is called {target!r}; there are {', '.join(ends)}")
        if other:
            raise ValueError(
                f"{target!r} names {other[0]!r}, too, which is no linear layer or convolution: give more of the name"
            )


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
    held, acting = dict(getattr(unet, "peft_config", None) or {}), active_in(unet)
    check_apart(unet)
    if name is None:
        name = next(f"default_{number}" for number in range(len(held) + 1) if f"default_{number}" not in held)
    if not isinstance(name, str) or not name or "." in name or name == "base_layer" or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"an adapter cannot be called {name!r}: give a name without dots that no part of a layer has")
    _check_fits(unet, adapter, told)
    if (name in held) != how.get("hotswap", False):
        there = f"there are {', '.join(held)}" if held else "there is none"
        taken = "is in use; delete it first, or give another name"
        reason = taken if name in held else f"is not there to swap; {there}"
        raise ValueError(f"adapter {name!r} {reason}")
    if name in held:
        _check_swaps(unet, adapter, name, told)
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    config = {key: value for key, value in adapter.config.items() if key in known or value not in (None, False, {}, [])}
    if strange := sorted(config.keys() - known):
        raise ValueError(f"{told} was trained with {strange[0]}, which this peft does not know: upgrade it")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are meant
            unet.load_lora_adapter(dict(adapter.tensors), prefix=None, adapter_name=name, metadata=config, **how)
    except Exception as error:  # peft's and diffusers' own: to the user all are one
        if not held:
            unet.unload_lora()  # what was put in before it failed
        elif name not in held:
            unet.set_adapter(acting)
        raise ValueError(f"{told} cannot be loaded: {one_line(error)}") from error
    if name in held:
        _keep_strength(unet, name)
    return name


def _check_swaps(unet: nn.Module, adapter: Adapter, name: str, told: str) -> None:
    """Raises ValueError unless an adapter can take the place of the one called so, layer by layer."""
    places = {at for at, layer in unet.named_modules() if name in getattr(layer, "lora_A", ())}
    present = unet.peft_config[name]  # type: ignore[union-attr,index]
    other = sorted(set(adapter.layers) - places)
    differs = [kind for kind in ("use_dora", "lora_bias") if adapter.config[kind] != getattr(present, kind)]
    if other or differs:
        reason = f"it adapts {other[0]!r}, too" if other else f"one has {differs[0]}, the other has not"
        raise ValueError(f"{told} cannot take the place of {name!r}: {reason}; load it beside, and delete that one")


def _keep_strength(unet: nn.Module, name: str) -> None:
    """After a swap, let set_scale know the new alpha: peft sets its effect alone."""
    for layer in adapted_layers(unet):
        if name in layer.scaling:
            wanted = layer.scaling[name]
            layer.set_scale(name, 1.0)
            layer.lora_alpha[name] = float(layer.lora_alpha[name] * wanted / layer.scaling[name])
            layer.scaling[name] = wanted


def check_apart(unet: nn.Module, disabled: bool = False) -> None:
    """Raises ValueError where adapters are fused into the weights, or disabled, so that no change of them would act.

    Args:
        disabled: disabled ones will do.
    """
    if any(layer.merged for layer in adapted_layers(unet)):
        raise ValueError(
            "the adapters of this network are fused into its weights: call unfuse_lora first, or unload_lora_weights "
            "to keep the weights as they are"
        )
    if not disabled and any(layer.disable_adapters for layer in adapted_layers(unet)):
        raise ValueError("the adapters of this network are disabled: call enable_lora first")


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
        shapes = {DOWN: (rank, ins, *kernel), UP: (outs, rank, *[1 for _ in kernel]), BIAS: (outs,)}
        shapes |= dict.fromkeys(LENGTHS, (1, outs, 1, 1) if kernel else (outs,))
        for end, shape in shapes.items():
            found = tuple(adapter.tensors[layer + end].shape) if layer + end in adapter.tensors else shape
            if found != shape:
                raise ValueError(
                    f"{told}: {layer}{end} has shape {found}, this network needs {shape}; load the network it was "
                    "trained on"
                )


def adapted_layers(network: nn.Module) -> list[Any]:
    """The layers that hold adapters."""
    return [module for module in network.modules() if hasattr(module, "base_layer")]


def fuse(network: Any, scale: float = 1.0, safe_fusing: bool = False, names: list[str] | None = None) -> None:
    """Add to the weights what adapters do, times ``scale``: those that act, or those named.

    Raises:
        ValueError: with ``safe_fusing``, a sum that is not finite; weights and scales are back then.
    """
    chosen = active_in(network) if names is None else names
    try:
        for layer in adapted_layers(network):
            layer.before_fusing = dict(layer.scaling)
            here = [name for name in chosen if name in layer.scaling]
            layer.scaling.update({name: layer.scaling[name] * scale for name in here})
            layer.merge(safe_merge=safe_fusing, adapter_names=here)
    except ValueError:
        unfuse(network)
        raise


def unfuse(network: nn.Module) -> None:
    """Undo :func:`fuse`, to rounding, and give the adapters their own scales back."""
    for layer in adapted_layers(network):
        if layer.merged:
            layer.unmerge()
        layer.scaling.update(layer.__dict__.pop("before_fusing", {}))


def active_in(network: Any) -> list[str]:
    """Names of the adapters that act in a network."""
    layers = adapted_layers(network)
    return [] if not layers or layers[0].disable_adapters else list(layers[0].active_adapters)
