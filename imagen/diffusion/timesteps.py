"""Which of the trained timesteps a sampler visits: a number of steps, or a list such as DeepFloyd IF's respacings.

No torch here, so the command line can check the names of the lists before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Steps in each of n equal sections of the 1000 levels, from the clean end to the noisy one, as IF was released with.
RESPACINGS: dict[str, tuple[int, ...]] = {
    "fast27": (10, 10, 3, 2, 2),
    "smart27": (7, 4, 2, 1, 2, 4, 7),
    "smart50": (10, 6, 4, 3, 2, 2, 3, 4, 6, 10),
    "smart100": (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 13),
    "smart185": (1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20),
    "super27": (1, 1, 1, 1, 1, 1, 1, 2, 5, 13),
    "super40": (2, 2, 2, 2, 2, 2, 3, 4, 6, 15),
    "super100": (4, 4, 6, 6, 8, 8, 10, 10, 14, 30),
}


def respace(counts: Sequence[int], levels: int = 1000) -> list[int]:
    """The timesteps of a respacing, falling: each section's first and last level, and evenly between them.

    Args:
        counts: steps in each of len(counts) sections, from the clean end on.
        levels: trained levels; the first ``levels % len(counts)`` sections are one longer.
    """
    taken: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        size = levels // len(counts) + (index < levels % len(counts))
        stride = (size - 1) / (count - 1) if count > 1 else 0.0
        offset = 0.0
        for _ in range(count):  # summed, not multiplied: where a level lies half way, IF rounds what the sum is
            taken.append(start + round(offset))
            offset += stride
        start += size
    return taken[::-1]


def count_steps(steps: int | str) -> int:
    """Network evaluations of a setting: the number itself, or the length of the list it names."""
    return steps if isinstance(steps, int) else sum(RESPACINGS[steps])


def chosen_timesteps(steps: int | str, levels: int = 1000) -> int | list[int]:
    """A setting of steps as the loop takes it: the number, or the timesteps of the one of RESPACINGS that it names."""
    return respace(RESPACINGS[steps], levels) if isinstance(steps, str) else steps
