"""What a process does with its memory beside the mathematics: settings that change times, and no number."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt`` in glibc's malloc.h."""
MOST = 2**31 - 1
LARGEST_BLOCK = 32 * 2**20
"""The most that every glibc takes for M_MMAP_THRESHOLD: bytes of a block that may lie among the others."""


@contextmanager
def uncollected(keep: bool = False) -> Iterator[None]:
    """Within it Python looks for no unreachable cycles: an import or a loaded model makes many objects and hardly any.

    Args:
        keep: what was made until its end is there to stay; later collections, and the one that ends the process, pass
            over it. For a command, which has its process to itself.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if keep:
            gc.freeze()
        if collecting:
            gc.enable()


def reuse_freed_memory() -> None:
    """Keep what is freed for what comes next, blocks of up to 32 MB; without glibc nothing is changed.

    glibc hands large blocks back at once, and the system zeroes the pages of each new one: of every feature map of a
    network on a CPU.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has none
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
            mallopt(M_TRIM_THRESHOLD, MOST)
