"""What the machine can do at best: a large product and a large copy, and which of the two bounds some work."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.speed.agree import LIMITS, Wrong, distance
from benchmarks.speed.clock import Clock


@dataclass(frozen=True)
class Work:
    """What a piece of work must do at least.

    Attributes:
        flops: floating-point operations of its products and convolutions (a multiplication with its addition is two).
        traffic: bytes that these read and write, each tensor once; all else as if it were fused into them.
    """

    flops: float
    traffic: float

    def times(self, factor: float) -> Work:
        """So many of it."""
        return Work(self.flops * factor, self.traffic * factor)


@dataclass(frozen=True)
class PerRow:
    """The work of calls of one network: weights are read once a call, all else grows with its rows.

    Attributes:
        one, two: of a call with so many rows.
    """

    one: Work
    two: Work

    def call(self, rows: int) -> Work:
        """Of a call with these rows."""
        one, two = self.one, self.two
        more = rows - 1
        return Work(one.flops + more * (two.flops - one.flops), one.traffic + more * (two.traffic - one.traffic))


@dataclass(frozen=True)
class Ceilings:
    """Measured rates: products by dtype in FLOP/s, copies in bytes/s (read and written both counted)."""

    products: dict[torch.dtype, float]
    copy: float

    def floor(self, work: Work, dtype: torch.dtype) -> tuple[float, str]:
        """Seconds below which the work cannot be done here, and what says so: "FLOPs" or "bytes"."""
        arithmetic, moving = work.flops / self.products[dtype], work.traffic / self.copy
        return (arithmetic, "FLOPs") if arithmetic >= moving else (moving, "bytes")


def product_rate(clock: Clock, side: int, dtype: torch.dtype, repeats: int = 10) -> float:
    """FLOP/s of a product of two random matrices (zeros would run faster), checked against float64 on a few rows."""
    left, right = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    torch.mm(left, right, out=out)
    error = distance(out[:8], left[:8].double() @ right.double())
    if not error <= LIMITS[dtype]:
        raise Wrong(f"the product of two {side} x {side} matrices in {dtype} is off by {error:.1e}")
    return 2 * side**3 / clock.measure(lambda: torch.mm(left, right, out=out), repeats, warmup=3).seconds


def copy_rate(clock: Clock, size: int, repeats: int = 10) -> float:
    """Bytes/s of a copy of ``size`` bytes on the device, reads and writes both counted."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    target.copy_(source)
    if not torch.equal(source[-64:], target[-64:]):
        raise Wrong("a copy is not what was copied")
    return 2 * size / clock.measure(lambda: target.copy_(source), repeats, warmup=3).seconds


def measure_ceilings(clock: Clock, side: int, size: int, dtypes: tuple[torch.dtype, ...]) -> Ceilings:
    """Both, the products in every dtype that is compared in."""
    return Ceilings({dtype: product_rate(clock, side, dtype) for dtype in dtypes}, copy_rate(clock, size))
