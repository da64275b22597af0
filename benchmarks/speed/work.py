"""Counts, on the meta device: operations, bytes and memory of a call. Costs no device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from benchmarks.speed.ceilings import PerRow, Work

#: A training step without recomputation is a forward, and a backward of twice its products.
STEP_OVER_FORWARD = 3

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Traffic(TorchDispatchMode):
    """Bytes that products and convolutions read and write, each tensor once.

    Of a batched product the largest of its three tensors is left out: these are attention's, and a fused kernel never
    writes the scores.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            leaves = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            sizes = sorted(leaf.numel() * leaf.element_size() for leaf in leaves)
            batched = func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
            self.bytes += sum(sizes[:-1] if batched else sizes)
        return out


class Live(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive, and their peak."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in network.state_dict().values()}  # counted as weights

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._seen:
                self._seen.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out


def weights(network: nn.Module) -> int:
    """Bytes of the parameters, each counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


def parameters(network: nn.Module) -> int:
    """How many there are."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def activations(network: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Peak bytes of what one call makes."""
    with Live(network) as live:
        network(**inputs)
    return live.peak


def on_meta(build: Callable[[], ModuleT], dtype: torch.dtype = torch.float32) -> ModuleT:
    """A network without memory."""
    with torch.device("meta"):
        return build().to(dtype).eval()


@torch.no_grad()
def count(call: Callable[[], object]) -> Work:
    """Operations and bytes of one call."""
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        call()
    return Work(float(flops.get_total_flops()), float(traffic.bytes))


def count_rows(call: Callable[[int], object]) -> PerRow:
    """The same of a call that is told its number of rows."""
    return PerRow(count(lambda: call(1)), count(lambda: call(2)))


def step_work(forward: Work) -> Work:
    """What a training step must do: model FLOPs, without recomputation."""
    return forward.times(STEP_OVER_FORWARD)
