"""LoRA adapters in a pipeline: any number in each stage, by the names that diffusers has for what is done with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from torch import Tensor

from imagen.cascade.adapter_files import trained_without_variance
from imagen.cascade.adapters import active_in, adapted_layers, check_apart, fuse, load_adapter, unfuse
from imagen.checks import check_choice, check_int, check_keys
from imagen.stages.spec import SLOTS
from unets.adapters import holds_adapter

logger = logging.get_logger(__name__)


class AdapterMixin:
    """The part of a pipeline that holds LoRA adapters: any number in each stage's network.

    Names and arguments are diffusers', where there is something of that kind. The adapters are the networks', which
    several pipelines may share (``from_pipe``).
    """

    def _network(self, slot: str) -> Any:
        """A stage's network (None: there is none), without what torch.compile wraps it in."""
        unet = getattr(self, f"{slot}_unet")
        return getattr(unet, "_orig_mod", unet)

    @property
    def _adapters(self) -> dict[str, list[str]]:
        """Names of the adapters that each stage holds, where it holds any, or did before they were deleted."""
        networks = {slot: self._network(slot) for slot in SLOTS}
        held = {slot: network for slot, network in networks.items() if holds_adapter(network)}
        return {slot: list(getattr(network, "peft_config", None) or {}) for slot, network in held.items()}

    def _holding(self, stage: str | None) -> Iterator[Any]:
        """The networks with adapters: that of a stage, or (None) all. Raises: ValueError where that stage has none."""
        if stage is not None and check_choice("stage", stage, SLOTS) not in self._adapters:
            raise ValueError(f"stage {stage!r} holds no adapter; load one with load_lora_weights")
        yield from (self._network(slot) for slot in self._adapters if stage in (None, slot))

    def load_lora_weights(
        self,
        adapter: str | Path | Mapping[str, Tensor],
        stage: str = "base",
        adapter_name: str | None = None,
        scale: float = 1.0,
        hotswap: bool = False,
    ) -> None:
        """Load an adapter into a stage's network, to act in all later calls beside those that act there already.

        Args:
            adapter: its file or folder, the ``run_dir`` of its training, or its tensors; as written here, by diffusers
                (since 2023) or by peft.
            stage: the slot: base, sr256 or sr1024.
            adapter_name: what other methods know it by; None: default_0, default_1, ... within its stage.
            scale: what its output is multiplied by; 1 is as it was trained. :meth:`set_adapters` changes it.
            hotswap: put it in the place of the one called so, without compiling anew (diffusers' conditions hold).

        Raises:
            ValueError: no such stage here, no adapter there, one of another network, or the name is in use.
        """
        unet = self._network(check_choice("stage", stage, SLOTS))
        if unet is None:
            told = "given" if isinstance(adapter, Mapping) else repr(str(adapter))
            raise ValueError(f"stage {stage!r} is not in this pipeline, which the adapter {told} is for")
        scale = _finite("scale", scale)
        acting = active_in(unet)
        name = load_adapter(unet, adapter, adapter_name, hotswap=hotswap, _pipeline=self)
        unet.set_adapter(list(dict.fromkeys([*acting, name])))
        for layer in adapted_layers(unet):
            before = layer.scaling.get(name)
            layer.set_scale(name, scale)
            if isinstance(before, Tensor):  # of enable_lora_hotswap, which a compiled graph reads
                layer.scaling[name] = before.fill_(layer.scaling[name])
        if trained_without_variance(adapter) and unet.facts.learns_variance:
            logger.warning(
                f"{stage}: this adapter was trained with train.drop_variance, and the network still has its learned "
                f'variance: call imagen.cascade.variance.drop_variance(pipe, "{stage}")'
            )

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Sequence[float] | Mapping[str, float] | None = None,
    ) -> None:
        """Let these adapters act, at these weights, and no others; in each stage those of them that it holds.

        Args:
            adapter_weights: one for all, one for each, or one for each stage by its slot; None: 1.

        Raises:
            ValueError: an adapter that no stage holds, or another number of weights.
        """
        names, held = self._held("adapter_names", adapter_names), self._adapters
        by_slot = {}
        if isinstance(adapter_weights, Mapping):
            by_slot = {str(part).removesuffix("_unet"): weight for part, weight in adapter_weights.items()}
            check_keys(by_slot, list(held), "adapter_weights")
            adapter_weights = None
        whole: Any = 1.0 if adapter_weights is None else adapter_weights
        weights = list(whole) if isinstance(whole, list | tuple) else [whole] * len(names)
        if len(weights) != len(names):
            raise ValueError(f"adapter_weights has {len(weights)} numbers for {len(names)} adapters; give one for each")
        chosen = {
            slot: {
                name: _finite("adapter_weights", by_slot.get(slot, weight))
                for name, weight in zip(names, weights, strict=True)
                if name in present
            }
            for slot, present in held.items()
        }
        for network in self._holding(None):
            check_apart(network)
        for slot, acting in chosen.items():
            self._network(slot).set_adapters(list(acting), list(acting.values()))

    def _held(self, argument: str, given: str | Sequence[str]) -> list[str]:
        """The names in an argument, each once. Raises: ValueError for what is no name, or one that no stage holds."""
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, Sequence):
            raise ValueError(f"{argument} is {given!r}; expected the name of an adapter, or a list of them")
        known = list(dict.fromkeys(name for present in self._adapters.values() for name in present))
        for name in names:
            if name not in known:
                raise ValueError(f"no stage holds an adapter {name!r}; there is {', '.join(known) or 'none'}")
        if len(set(names)) < len(names):
            raise ValueError(f"{argument} {list(names)} names an adapter twice")
        return list(names)

    def _parts(self, components: str | Sequence[str] | None) -> list[Any]:
        """The networks of these stages, each once (None: of all), which hold adapters. Raises: ValueError."""
        if components is None:
            return list(self._holding(None))
        parts = [components] if isinstance(components, str) else components
        slots = dict.fromkeys(str(part).removesuffix("_unet") for part in parts)
        return [network for slot in slots for network in self._holding(slot)]

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that act, in any stage; none where they are disabled."""
        return list(dict.fromkeys(name for network in self._holding(None) for name in active_in(network)))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of the adapters that each network holds, by its component's name (base_unet, ...)."""
        return {f"{slot}_unet": names for slot, names in self._adapters.items() if names}

    def enable_lora(self) -> None:
        """Let the adapters act again, as before :meth:`disable_lora`."""
        for network in self._holding(None):
            network.enable_lora()

    def disable_lora(self) -> None:
        """Let no adapter act, and keep them. Raises: ValueError where they are fused into the weights."""
        for network in self._holding(None):
            check_apart(network, disabled=True)
        for network in self._holding(None):
            network.disable_lora()

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take adapters out of every stage that holds them. Raises: ValueError for one that none does."""
        names = self._held("adapter_names", adapter_names)
        gone_from = {slot: [name for name in names if name in present] for slot, present in self._adapters.items()}
        for slot, gone in gone_from.items():
            if gone:
                check_apart(self._network(slot), disabled=True)
        for slot, gone in gone_from.items():
            network = self._network(slot)
            if len(gone) == len(self._adapters[slot]):
                network.unload_lora()
            elif gone:
                # first, for peft would let another act in its place
                network.set_adapter([name for name in network.active_adapters() if name not in gone])
                network.delete_adapters(gone)

    def fuse_lora(
        self,
        components: str | Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: str | Sequence[str] | None = None,
    ) -> None:
        """Add the product of the adapters that act to the weights, to sample as fast as without any.

        :meth:`unfuse_lora` takes it off again, to rounding; :meth:`unload_lora_weights` then keeps it for good.

        Args:
            components: of these stages (base or base_unet, ...); None: of all that hold adapters.
            lora_scale: times the weight of each.
            safe_fusing: leave the weights alone where the sum is not finite, and say so.
            adapter_names: of these alone.

        Raises:
            ValueError: an adapter or a stage that is not there, or, with ``safe_fusing``, a sum that is not finite.
        """
        scale = _finite("lora_scale", lora_scale)
        names = None if adapter_names is None else self._held("adapter_names", adapter_names)
        networks = self._parts(components)
        for network in networks:
            check_apart(network)
        for network in networks:
            fuse(network, scale, safe_fusing, names)

    def unfuse_lora(self, components: str | Sequence[str] | None = None) -> None:
        """Undo :meth:`fuse_lora`, to rounding: the adapters act as before, at their own weights."""
        for network in self._parts(components):
            unfuse(network)

    def unload_lora_weights(self, stage: str | None = None) -> None:
        """Take the adapters of a stage (None: of every stage) out again; the weights are those before, bit for bit, or
        those that they were fused into.
        """
        for network in self._holding(stage):
            network.unload_lora()

    def merge_lora_weights(self, stage: str | None = None) -> None:
        """Add what the adapters of a stage (None: of every stage) do to its weights, for good: to save, or to sample
        faster. Raises: ValueError where the sum is not finite.
        """
        for network in self._holding(stage):
            check_apart(network)
        for network in self._holding(stage):
            fuse(network, safe_fusing=True)
            network.unload_lora()

    def enable_lora_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """Before the first adapter is loaded: make room for others of up to this rank, to be swapped in later."""
        target_rank = check_int("target_rank", target_rank, 1)
        check_choice("check_compiled", check_compiled, ("error", "warn", "ignore"))
        for network in (self._network(slot) for slot in SLOTS if self._network(slot) is not None):
            network.enable_lora_hotswap(target_rank, check_compiled)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers', where no stage holds an adapter. Raises: ValueError, saying how to save one that does."""
        if self._adapters:
            held = ", ".join(self._adapters)
            raise ValueError(f"{held} holds an adapter: call merge_lora_weights or unload_lora_weights before saving")
        super().save_pretrained(*args, **kwargs)  # type: ignore[misc]


def _finite(name: str, value: Any) -> float:
    """A number, or what holds one, as float. Raises: ValueError."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}; give a finite number: 1 is as trained, 0 is off")
    return number
