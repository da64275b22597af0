"""The symmetric contrast of a whole batch, whatever the number of processes that share it.

InfoNCE (van den Oord et al. 2018) in both directions, as CLIP has it (Radford et al. 2021, figure 3): each picture
picks its text among all of the batch, and each text its picture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from imagen.training.processes import Processes


class _Gather(torch.autograd.Function):
    """Every process's rows, in the processes' order; what each makes of them reaches the gradient of their owner."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, processes: Processes) -> Tensor:
        ctx.processes, ctx.rows = processes, len(part)
        everywhere = part.new_zeros(processes.world * len(part), *part.shape[1:])
        everywhere[processes.rank * len(part) :][: len(part)] = part
        return processes.add(everywhere)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        everywhere = ctx.processes.add(gradients[0].contiguous())
        return everywhere[ctx.processes.rank * ctx.rows :][: ctx.rows], None


def gathered(part: Tensor, processes: Processes) -> Tensor:
    """(world · B, D): the rows (B, D) of all processes, as many of each, differentiable."""
    if processes.world == 1:
        return part
    everywhere: Tensor = _Gather.apply(part, processes)  # type: ignore[no-untyped-call]  # as torch declares it
    return everywhere


def contrast(images: Tensor, texts: Tensor, scale: Tensor, processes: Processes) -> Tensor:
    """(B,): the loss of each pair of this process; the mean over all processes is the loss of the global batch.

    Args:
        images, texts: (B, D) unit vectors of this process's pairs.
        scale: cosines are multiplied by it, the inverse of a temperature.
        processes: that share the global batch equally.
    """
    own = torch.arange(len(images), device=images.device) + processes.rank * len(images)
    towards_texts = cross_entropy(scale * images @ gathered(texts, processes).T, own, reduction="none")
    towards_images = cross_entropy(scale * texts @ gathered(images, processes).T, own, reduction="none")
    return (towards_texts + towards_images) / 2
