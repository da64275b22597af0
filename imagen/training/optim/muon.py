"""One step of Muon (Jordan et al. 2024) as torch has it, matrices of one shape together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, _zeropower_via_newtonschulz

MOMENTUM, ITERATIONS, EPS = 0.95, 5, 1e-7  # torch's defaults
AT_ONCE = 2**24  # elements of a batch: what is small is worth putting together, and a copy of everything takes memory


def muon(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], momenta: Sequence[Tensor], lr: float, weight_decay: float
) -> None:
    """What ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"`` does to matrices, in place.

    torch takes them one after another, fifteen products each, and so does this on a CPU. An accelerator waits for so
    many small calls: there a product is one of all matrices of a shape.

    Args:
        weights, gradients, momenta: (rows, columns) each; ``momenta`` are zeros at first.
    """
    for numbers in batches(weights):
        w, g, m = ([matrices[number] for number in numbers] for matrices in (weights, gradients, momenta))
        torch._foreach_lerp_(m, g, 1 - MOMENTUM)
        updates = orthogonal(torch._foreach_lerp(g, m, MOMENTUM))  # Nesterov's: a step ahead
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        for weight, update in zip(w, updates, strict=True):
            weight.add_(update, alpha=-lr * (0.2 * math.sqrt(max(weight.shape))))


def batches(matrices: Sequence[Tensor]) -> Iterator[list[int]]:
    """The numbers of all, those of one shape together up to :data:`AT_ONCE` elements; on a CPU each alone.

    A CPU would gain a tenth, and would round otherwise than before: its kernels depend on how many there are.
    """
    alike: dict[torch.Size, list[int]] = {}
    for number, matrix in enumerate(matrices):
        alike.setdefault(matrix.shape, []).append(number)
    for shape, numbers in alike.items():
        on_cpu = matrices[numbers[0]].device.type == "cpu"
        size = 1 if on_cpu else max(1, AT_ONCE // shape.numel())
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def orthogonal(matrices: Sequence[Tensor]) -> Tensor:
    """Near the orthogonal factor U V^T of each U S V^T, by a Newton-Schulz iteration in bfloat16.

    Args:
        matrices: N of one shape (rows, columns).

    Returns:
        (N, rows, columns), bfloat16; the singular values are about 0.7 to 1.2, as the method's authors chose.
    """
    if len(matrices) == 1:
        return _zeropower_via_newtonschulz(matrices[0], (DEFAULT_A, DEFAULT_B, DEFAULT_C), ITERATIONS, EPS)[None]
    x = torch.stack([matrix.bfloat16() for matrix in matrices])
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    norms = torch.stack(torch._foreach_norm(list(x)))
    x = x / norms.clamp(min=EPS)[:, None, None]  # so that no singular value is above 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=DEFAULT_B, alpha=DEFAULT_C)
        x = torch.baddbmm(x, gram, x, beta=DEFAULT_A)
    return x.mT if tall else x
