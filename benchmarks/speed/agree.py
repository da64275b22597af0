"""Do two networks say the same? Asked before anything is timed: a fast wrong answer is worth nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Largest relative distance to float64 at which a comparison counts.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


class Wrong(RuntimeError):
    """What is to be timed does not compute what it should."""


def distance(out: Tensor, reference: Tensor) -> float:
    """Norm of the difference over that of the reference, in float64; infinite where a number is not finite."""
    reference = reference.double()
    if not (torch.isfinite(out).all() and torch.isfinite(reference).all()):
        return float("inf")
    return float((out.double() - reference).norm() / reference.norm().clamp(min=1e-300))


@dataclass(frozen=True)
class Agreement:
    """Relative distances to the float64 reference.

    Attributes:
        ours, peer: of each contestant; a section without a peer has none.
        limit: above which a comparison does not count.
    """

    ours: float
    peer: float | None
    limit: float

    @property
    def counts(self) -> bool:
        """Whether both are near enough."""
        return self.ours <= self.limit and (self.peer is None or self.peer <= self.limit)


def agree(ours: Tensor, peer: Tensor | None, reference: Tensor) -> Agreement:
    """Compare the outputs of one input with what an independent network gives in float64.

    The peer's own rounding says how much is rounding: deep networks of random weights in bfloat16 may pass the limit a
    little, which makes a comparison not count and is no mistake.

    Raises:
        Wrong: ours is off by more than its dtype's limit and more than twice what the peer is, or, with a peer or
            without, ten times the limit.
    """
    limit = LIMITS[ours.dtype]
    mine = distance(ours, reference)
    theirs = None if peer is None else distance(peer, reference)
    allowed = 10 * limit if theirs is None else max(limit, min(2 * theirs, 10 * limit))
    if not mine <= allowed:
        raise Wrong(f"ours is off by {mine:.1e} in {ours.dtype}, {allowed:.1e} allowed (the peer: {theirs})")
    return Agreement(mine, theirs, limit)
