"""How long does attention take on one core, forward and with its gradient, in bfloat16 and float32?

    python -m benchmarks.cpu_attention

torch has two kernels for a CPU: a fused one ("flash") and plain matrix products ("math"). Each row is one size: image
positions attend to themselves and to 20 text tokens behind a mask, as in the networks' attention layers. Times are the
median of the repeats that fit into half a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SIZES = ((64, 16, 4, 32), (256, 8, 4, 32), (1024, 2, 4, 32), (1024, 2, 8, 64), (4096, 1, 4, 32))
TOKENS = 20


def milliseconds(call: Callable[[], object], seconds: float = 0.5) -> float:
    """Median time of a call."""
    call()
    times, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 3:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def measure(size: tuple[int, int, int, int], dtype: torch.dtype, kernel: SDPBackend) -> tuple[float, float]:
    """(forward alone, forward and backward) in milliseconds."""
    positions, batch, heads, dim = size
    query = torch.randn(batch, heads, positions, dim, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(batch, heads, positions + TOKENS, dim, dtype=dtype, requires_grad=True) for _ in range(2))
    mask = torch.ones(batch, 1, 1, positions + TOKENS, dtype=torch.bool)

    def attend() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    with sdpa_kernel(kernel):
        with torch.no_grad():
            forward = milliseconds(attend)
        return forward, milliseconds(lambda: attend().sum().backward())


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(
        "| positions x batch x heads x width | dtype | flash: forward | with gradient | math: forward | with gradient |"
    )
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        for dtype in (torch.bfloat16, torch.float32):
            times = [t for k in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH) for t in measure(size, dtype, k)]
            name = str(dtype).removeprefix("torch.")
            print(f"| {' x '.join(map(str, size))} | {name} | " + " | ".join(f"{t:.1f}" for t in times) + " |")


if __name__ == "__main__":
    main()
