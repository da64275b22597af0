"""One generator for a call -> one per picture and stage, so that a picture does not depend on its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def picture_seeds(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """Seeds of ``count`` pictures.

    One generator (None: torch's global one) is drawn from once, whatever ``count`` is; picture i's seed is a hash of
    that draw and i. A list holds one generator for each picture, and each counts as picture 0 of its own: entry i of
    ``pipe([a, b], generator=[g0, g1])`` is what ``pipe(b, generator=g1)`` makes.

    Raises:
        ValueError: a list of another length than the number of pictures, or something that is no generator.
    """
    if generator is None or isinstance(generator, torch.Generator):
        root = _draw(generator)
        return [_hash(root, index) for index in range(count)]
    generators = list(generator) if isinstance(generator, Sequence) else [generator]
    strange = [type(entry).__name__ for entry in generators if not isinstance(entry, torch.Generator)]
    if strange:
        raise ValueError(
            f"generator holds a {strange[0]}; expected torch.Generator().manual_seed(SEED), or a list of them"
        )
    if len(generators) != count:
        raise ValueError(
            f"generator is a list of {len(generators)} for {count} pictures; give one per picture, or a single one"
        )
    return [_hash(_draw(entry), 0) for entry in generators]


def stage_generator(seed: int, slot: str) -> torch.Generator:
    """The generator of one picture in one stage. Always on the CPU, so a seed means one picture on every device."""
    return torch.Generator("cpu").manual_seed(_hash(seed, slot))


def _draw(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (1,), generator=generator, device=device).item())


def _hash(*parts: int | str) -> int:
    digest = hashlib.blake2b("/".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
