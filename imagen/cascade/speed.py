"""Faster networks, on request: a pipeline's are compiled, and their weights laid out channels last.

Pictures then differ by rounding, which is why nothing here happens by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from imagen.errors import one_line
from unets.regions import uncompiled

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
REMEDY = "install one (Debian, Ubuntu: apt install g++), name yours in CXX, or leave compiling out"


class SpeedMixin:
    """The part of a pipeline that compiles its networks."""

    components: dict[str, Any]  # of diffusers' DiffusionPipeline
    _execution_device: torch.device

    def compile(self, *, whole: bool = False, channels_last: bool | None = None, **kwargs: Any) -> None:
        """Compile the networks that are here, weaker ones too; their first calls then take longer, later ones less.

        By regions: the residual blocks and attention layers of a U-Net and the blocks of a DiT, of which equal ones
        share a graph, are compiled when they first run, and what lies between them is not. All timesteps, prompts,
        lengths of text and numbers of pictures have the same graphs, but one picture without guidance has its own (for
        torch makes a constant of a size of one), and so have texts with padding between them, another size of picture,
        an adapter, and gradients. The text encoder, which runs once a call, and the safety checker are not compiled.

        What :meth:`save_pretrained` writes, names and numbers, is not changed; adapters, offload of whole models,
        callbacks and :meth:`from_pipe` (whose pipelines share the networks) work as before. Called again, it takes the
        place of the call before. Networks that join later are not compiled.

        Args:
            whole: each network as one graph. That takes longer, and CUDA graphs then cover all of it: for
                ``mode="reduce-overhead"``.
            channels_last: lay convolutions' weights out so; None: on a CPU and, in half precision, on CUDA. False
                leaves the layout as it is.
            kwargs: those of ``torch.compile``. ``dynamic=True`` leaves sides of pictures open, too, for more compiling.

        Raises:
            ValueError: no network is here, one is wrapped by ``torch.compile`` or offloaded layer by layer, there is no
                compiler, or an argument that ``torch.compile`` refuses.
        """
        networks = self._compilable()
        device = self._execution_device
        if kwargs.get("backend", "inductor") == "inductor":
            check_compiler(device)
        captured = kwargs.get("mode") in CUDA_GRAPH_MODES or bool(
            (kwargs.get("options") or {}).get("triton.cudagraphs")
        )
        for network in networks.values():
            uncompiled(network)
            _marking(network, captured and not whole)
            try:
                (network.compile if whole else network.compile_repeated_blocks)(**kwargs)
            except (TypeError, RuntimeError, ValueError) as error:
                uncompiled(network)
                raise ValueError(f"compile: torch.compile takes no such argument: {one_line(error)}") from error
            if captured and whole:
                network._compiled_call_impl = _kept(network._compiled_call_impl)
            half = network.dtype in (torch.float16, torch.bfloat16)
            wanted = device.type == "cpu" or (device.type == "cuda" and half)
            if wanted if channels_last is None else channels_last:
                network.to(memory_format=torch.channels_last)

    def _compilable(self) -> dict[str, Any]:
        """The networks, by the names of their components. Raises: ValueError, see :meth:`compile`."""
        networks = {name: part for name, part in self.components.items() if name.endswith("_unet") and part is not None}
        if not networks:
            raise ValueError("compile: this pipeline has no network")
        for name, network in networks.items():
            if hasattr(network, "_orig_mod"):
                raise ValueError(
                    f"compile: {name} is wrapped by torch.compile; give the pipeline the network in it "
                    f"(pipe.{name} = pipe.{name}._orig_mod) or leave pipe.compile() out"
                )
            if any(hasattr(module, "_hf_hook") for module in network.modules() if module is not network):
                raise ValueError(
                    f"compile: the layers of {name} are offloaded one by one; use enable_model_cpu_offload() in place "
                    "of the sequential one, or leave pipe.compile() out"
                )
        return networks


def check_compiler(device: torch.device) -> None:
    """Raises ValueError where what inductor makes for a device has no compiler."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, RuntimeError, OSError) as error:
            raise ValueError(
                f"compile: no C++ compiler is here, and torch compiles for a CPU with one: {REMEDY}"
            ) from error
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(
                "compile: triton is not here or does not know this card; pip install triton, or leave it out"
            )


def _mark(network: nn.Module, args: object) -> None:
    """Says that a network is called again: what the CUDA graphs of its regions made before may be overwritten."""
    if not torch.is_grad_enabled():
        torch.compiler.cudagraph_mark_step_begin()


def _marking(network: Any, wanted: bool) -> None:
    """Whether a network's calls are marked; skips of one region that a later one reads need it."""
    before = network.__dict__.pop("_cudagraph_mark", None)
    if before is not None:
        before.remove()
    if wanted:
        network._cudagraph_mark = network.register_forward_pre_hook(_mark)


def _kept(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled network whose answers outlive its next call, which overwrites what a CUDA graph made."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return compiled(*args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()
        return tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, compiled(*args, **kwargs))

    return call
