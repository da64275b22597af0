"""Which stages a call runs, and with what settings: everything that can be said without a network. No torch.

The command line asks here before a model is loaded, the pipeline when it is called.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

from imagen.checks import check_int
from imagen.stages.spec import OF_CALLS, SETTINGS, StageDefaults

Stages = Mapping[str, StageDefaults]
"""The stages of a model by slot, in the order of the cascade."""


T = TypeVar("T")


class ByStage(dict[int, T]):
    """Something of every stage of a call, in order, keyed by the stage's side in pixels; a slot is answered, too.

    Of several stages of one side, a side means the last; ``slots`` holds all.
    """

    def __init__(self, entries: Iterable[tuple[str, int, T]] = ()) -> None:
        super().__init__()
        self.slots: dict[str, T] = {}
        for slot, side, value in entries:
            self.add(slot, side, value)

    def add(self, slot: str, side: int, value: T) -> None:
        """What the next stage made or was set to."""
        self.slots[slot] = self[side] = value

    def __missing__(self, key: Any) -> T:
        return self.slots[key]

    def __contains__(self, key: Any) -> bool:
        return super().__contains__(key) or key in self.slots

    def get(self, key: Any, default: Any = None) -> Any:
        """As a dict's, for sides and slots."""
        return super().get(key, self.slots.get(key, default))


class Wish(NamedTuple):
    """What a call asks of the stages.

    Attributes:
        size: side to stop at; None for as far as it goes.
        height, width: of the last stage's picture; both None for a square.
        settings: values by setting (:data:`imagen.stages.spec.OF_CALLS`): None, one value, one per stage, or a dict
            by side or slot.
    """

    size: int | None = None
    height: int | None = None
    width: int | None = None
    settings: Mapping[str, Any] = {}

    @property
    def aspect(self) -> tuple[int, int]:
        """Height to width; (1, 1) is square."""
        return (1, 1) if self.height is None or self.width is None else (self.height, self.width)


def option(name: str) -> str:
    """A setting as people at the command line know it."""
    return OF_CALLS.get(name, f"--{name}")


def resolve(
    stages: Stages, wish: Wish, pictures: Sequence[tuple[int, int]] = (), say: Callable[[str], str] = str
) -> dict[str, StageDefaults]:
    """The stages that a call runs, in order, by slot, each with the call's settings in place of its stored ones.

    Args:
        pictures: height and width of each picture to start from, cropped to ``wish.aspect``; none: from text.
        say: how a setting is called in errors: as the pipeline's callers know it, or :func:`option`.

    Raises:
        ValueError: no such route through the stages, a value out of range, or one that nothing reads.
    """
    if wish.size is not None:
        check_int(say("size"), wish.size, 1)
    if (wish.height is None) != (wish.width is None):
        raise ValueError(f"{say('height')} is {wish.height!r} and {say('width')} {wish.width!r}; give both or none")
    for name, side in zip(("height", "width"), wish.aspect, strict=True):
        check_int(say(name), side, 1)
    sides = [entry_side(stages, wish.size, wish.aspect, picture) for picture in pictures]
    slots = route(stages, wish.size, min(sides) if sides else None)
    from_picture = {slot: settings for slot, settings in stages.items() if settings.lowres_size is not None}
    values: dict[str, dict[str, Any]] = {slot: {} for slot in slots}
    for name, value in wish.settings.items():
        takes = from_picture if SETTINGS[name].from_picture else stages
        running = [slot for slot in slots if slot in takes]
        if value is not None and not running:
            raise ValueError(f"{say(name)}={value!r} has no effect: no super-resolution stage runs; leave it out")
        for slot, chosen in per_stage(say(name), value, running, takes).items():
            if chosen is not None:
                values[slot][name] = SETTINGS[name].check(say(name), chosen)
    return {slot: dataclasses.replace(stages[slot], **values[slot]) for slot in slots}


def check_shape(
    stages: Stages, divisors: Mapping[str, int], height: int, width: int, say: Callable[[str], str] = str
) -> None:
    """Check the sides of the last stage's picture.

    Args:
        stages: those that run, in order.
        divisors: what each network's sides have to be multiples of.

    Raises:
        ValueError: a side that is not a multiple of what the networks' strides and the stages' sizes allow.
    """
    every = list(stages.values())
    last = every[-1].size
    units = [Fraction(last, settings.size) * divisors[slot] for slot, settings in stages.items()]
    units += [Fraction(last, settings.lowres_size) for settings in every if settings.lowres_size is not None]
    unit = math.lcm(*(entry.numerator for entry in units))
    for name, side in (("height", height), ("width", width)):
        check_int(say(name), side, 1)
        if side % unit:
            near = max(unit, round(side / unit) * unit)
            raise ValueError(
                f"{say(name)}={side} is not a multiple of {unit}, which these stages need; the nearest is {near}"
            )


def cropped(height: int, width: int, aspect: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the largest part of a picture whose height is to its width as ``aspect`` says."""
    scale = min(height / aspect[0], width / aspect[1])
    return max(1, round(aspect[0] * scale)), max(1, round(aspect[1] * scale))


def entry_side(stages: Stages, size: int | None, aspect: tuple[int, int], picture: tuple[int, int]) -> int:
    """Side of the square picture that fills a stage's input where ``picture`` fills it in a call of another shape.

    Args:
        size: the square side of the last stage, or None for the model's largest.
        aspect: height and width of the last stage's picture; (1, 1) for a square.
        picture: height and width of the one to start from, cropped to that shape.
    """
    if aspect == (1, 1):
        return min(picture)
    last = size or max(defaults.size for defaults in stages.values())
    return min(side * last // whole for side, whole in zip(picture, aspect, strict=True))


def route(stages: Stages, size: int | None = None, image_side: int | None = None) -> list[str]:
    """The slots a call runs, in order.

    Without a picture the cascade starts at the stage that needs none. A picture of side ``image_side`` enters at the
    last stage whose input it fills, so a 64 px picture goes through every super-resolution stage and a 256 px one (or
    a photograph of 700 px, reduced to 256) only through the last; smaller ones enter at the first. A stage that keeps
    its size runs behind the one that makes it, and a side to stop at means the last stage of that side.

    Args:
        stages: the defaults of the stages that are there.
        size: the side to stop at; None for the largest that can be reached.
        image_side: shorter side of the picture to start from, or None.

    Raises:
        ValueError: no stage makes that size or can start from what is given, or one in between is missing.
    """
    if not stages:
        raise ValueError("this pipeline has no stage: load a model with a network and a scheduler for at least one")
    made = sorted({defaults.size for defaults in stages.values()})
    if size is not None and size not in made:
        raise ValueError(f"size={size}: this model makes {', '.join(map(str, made))} px; choose one of these")
    chain = [_start(stages) if image_side is None else _entry(stages, image_side, size)]
    while follower := _follower(stages, chain, size):
        chain.append(follower)
    reached = stages[chain[-1]].size
    if size is not None and reached != size:
        missing = next(slot for slot, defaults in stages.items() if defaults.size == size)
        raise ValueError(
            f"size={size}: stage {missing} starts from {stages[missing].lowres_size} px and no stage here makes those; "
            f"the stages here stop at {reached} px. Add the missing stage, or give a picture to start from"
        )
    return chain


def _start(stages: Stages) -> str:
    for slot, defaults in stages.items():
        if defaults.lowres_size is None:
            return slot
    raise ValueError(f"this model has no base stage (only {', '.join(stages)}): give the picture to start from")


def _follower(stages: Stages, chain: Sequence[str], size: int | None) -> str | None:
    """The stage behind the last of ``chain``, one that keeps the size before one that changes it; None at the end."""
    side = stages[chain[-1]].size
    followers = [slot for slot, defaults in stages.items() if defaults.lowres_size == side and slot not in chain]
    followers = [slot for slot in followers if size is None or stages[slot].size <= max(size, side)]
    keeping = [slot for slot in followers if stages[slot].size == side]
    if side == size and not keeping:
        return None
    return next(iter(keeping + followers), None)


def _entry(stages: Stages, image_side: int, size: int | None) -> str:
    needs = {slot: d.lowres_size for slot, d in stages.items() if d.lowres_size and (size is None or d.size <= size)}
    if not needs:
        limit = f" up to size={size}" if size is not None else ""
        raise ValueError(f"this model has no super-resolution stage{limit} that could start from a picture")
    filled = [slot for slot, lowres in needs.items() if lowres <= image_side]
    return max(filled, key=needs.__getitem__) if filled else min(needs, key=needs.__getitem__)


def check_sizes(before: Stages, after: Stages) -> None:
    """Raises ValueError where other sizes leave a stage without the one that made the pictures it starts from."""
    for slot, stage in after.items():
        made, now = ({other.size for name, other in s.items() if name != slot} for s in (before, after))
        low = before[slot].lowres_size
        if low is not None and stage.lowres_size is None:
            raise ValueError(f"stage {slot}: lowres_size is None, but its network starts from a picture; it was {low}")
        if low is None and stage.lowres_size is not None:
            raise ValueError(
                f"stage {slot}: lowres_size is {stage.lowres_size}, but its network starts from no picture"
            )
        if low in made and stage.lowres_size not in now:
            raise ValueError(
                f"stage {slot} would start from {stage.lowres_size} px, and the stages here make "
                f"{', '.join(map(str, sorted(now)))} px; give ImagenPipeline sizes that meet (stages=)"
            )


def per_stage(name: str, value: Any, running: Sequence[str], stages: Stages) -> dict[str, Any]:
    """Spread a call's argument over the stages it runs: slot -> value, or None where the stage's default holds.

    Args:
        value: None, one value for all, a list or tuple (one per running stage, or one per stage of the model), or a
            dict keyed by the stage's side (the last stage of that side) or slot.

    Raises:
        ValueError: a list of another length, or a key that is no stage of the model.
    """
    if isinstance(value, Mapping):
        by_key: dict[Any, str] = {stages[slot].size: slot for slot in stages} | {slot: slot for slot in stages}
        unknown = [key for key in value if key not in by_key]
        if unknown:
            known = ", ".join(str(stages[slot].size) for slot in stages)
            raise ValueError(f"{name} names stage {unknown[0]!r}; this model has {known}")
        named: dict[str, Any] = {}
        for key, entry in value.items():
            if by_key[key] in named:
                raise ValueError(f"{name} names stage {by_key[key]} twice, by side and slot; give it one value")
            named[by_key[key]] = entry
        return {slot: named.get(slot) for slot in running}
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) == len(running):
            return dict(zip(running, value, strict=True))
        if len(value) == len(stages):
            return {slot: entry for slot, entry in zip(stages, value, strict=True) if slot in running}
        sizes = ", ".join(str(stages[slot].size) for slot in running)
        raise ValueError(f"{name} has {len(value)} values; expected one, or {len(running)} (for {sizes} px)")
    return dict.fromkeys(running, value)
