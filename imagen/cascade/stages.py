"""What the pipeline knows of each stage beyond its network and scheduler: sizes, defaults, the order they run in.

Stored in ``model_index.json`` under ``stages`` with a ``format_version``; no torch here, so the command line can check
a model folder before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, get_args

from imagen.diffusion.timesteps import RESPACINGS, count_steps

FORMAT_VERSION = 3
SLOTS = ("base", "sr256", "sr1024")
USUAL_SIZES = {"base": (64, None), "sr256": (256, 64), "sr1024": (1024, 256)}
FROM_PICTURE = ("aug_level", "lowres_consistency")  # settings of a stage that starts from a picture alone
Threshold = Literal["none", "static", "dynamic"]
AugSpace = Literal["lowres", "upsampled"]
ResizeMode = Literal["auto", "area", "bicubic", "bilinear", "bilinear_corners", "nearest"]
Padding = Literal["masked", "visible"]
Null = Literal["zero", "empty"]
AUG_SCHEDULE_KEYS = ("kind", "shift", "max_log_snr", "s", "beta_start", "beta_end")


@dataclass(frozen=True)
class StageDefaults:
    """How a stage samples unless the call says otherwise. The paper gives no step counts; these are our choice.

    Attributes:
        size: side of the picture it makes, in pixels.
        lowres_size: side of the picture it starts from; None for a stage that starts from text (or nothing).
        num_inference_steps: network evaluations, >= 1, or the name of a list of timesteps
            (:data:`imagen.diffusion.timesteps.RESPACINGS`).
        guidance_scale: w of eq. 2, >= 0; 1 is off. 5 is the paper's value for its Fig. A.10.
        threshold: ``none``, ``static`` or ``dynamic`` (section 2.3).
        threshold_p: quantile of dynamic thresholding, in (0, 1]; 0.995 in Fig. A.10.
        threshold_cap: upper bound of the dynamic threshold, >= 1; None (the paper) for no bound.
        aug_level: strength of the low-res noise in [0, 1]; the paper's best-looking samples use 0.1 to 0.3 (D.2).
        aug_space: where that noise is added: ``lowres`` (before resizing, the default) or ``upsampled`` (IF).
        aug_schedule: the schedule that turns the level into noise, as the arguments of
            :func:`imagen.diffusion.schedules.make_schedule`; empty for the cosine (the paper is silent).
        lowres_consistency: side, in low-res pixels, of the cells over which the picture keeps the mean colours of the
            one it starts from (:func:`imagen.diffusion.consistency.match_lowres`); 0 (the paper) leaves it free.
        lowres_mode: how the small picture is enlarged, a mode of :func:`imagen.diffusion.augmentation.resize`.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    size: int
    lowres_size: int | None = None
    num_inference_steps: int | str = 50
    guidance_scale: float = 5.0
    threshold: Threshold = "dynamic"
    threshold_p: float = 0.995
    threshold_cap: float | None = None
    aug_level: float = 0.1
    aug_space: AugSpace = "lowres"
    aug_schedule: Mapping[str, Any] = field(default_factory=dict)
    lowres_mode: ResizeMode = "auto"
    lowres_consistency: int = 0

    def __post_init__(self) -> None:
        settle = partial(object.__setattr__, self)  # NumPy's numbers become Python's, which JSON can hold
        settle("size", check_int("size", self.size, 1))
        if self.lowres_size is not None:
            settle("lowres_size", check_int("lowres_size", self.lowres_size, 1, self.size))
        settle("num_inference_steps", check_steps("num_inference_steps", self.num_inference_steps))
        settle("guidance_scale", check_number("guidance_scale", self.guidance_scale, 0.0))
        check_choice("threshold", self.threshold, get_args(Threshold))
        settle("threshold_p", check_number("threshold_p", self.threshold_p, 1e-6, 1.0))
        if self.threshold_cap is not None:
            settle("threshold_cap", check_number("threshold_cap", self.threshold_cap, 1.0))
        settle("aug_level", check_number("aug_level", self.aug_level, 0.0, 1.0))
        settle("lowres_consistency", check_int("lowres_consistency", self.lowres_consistency, 0))
        if self.lowres_consistency and self.lowres_size is None:
            raise ValueError(f"lowres_consistency is {self.lowres_consistency}; expected 0 without lowres_size")
        check_choice("aug_space", self.aug_space, get_args(AugSpace))
        check_choice("lowres_mode", self.lowres_mode, get_args(ResizeMode))
        if not isinstance(self.aug_schedule, Mapping) or not set(self.aug_schedule) <= {*AUG_SCHEDULE_KEYS}:
            raise ValueError(f"aug_schedule is {self.aug_schedule!r}; expected keys {', '.join(AUG_SCHEDULE_KEYS)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "stage") -> StageDefaults:
        """Build from a plain dict (``stage.json``, ``model_index.json``).

        Raises:
            ValueError: an unknown key, naming the nearest known one; no ``size``; or a value out of range.
        """
        _check_keys(cls, values, where)
        if "size" not in values:
            raise ValueError(f"{where}: no 'size'; give the side of the picture this stage makes, in pixels")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Every field, so that a stored stage does not move when a default of the code does."""
        return {**dataclasses.asdict(self), "aug_schedule": dict(self.aug_schedule)}

    @property
    def steps(self) -> int:
        """Network evaluations, also where ``num_inference_steps`` names a list."""
        return count_steps(self.num_inference_steps)


@dataclass(frozen=True)
class TextDefaults:
    """How prompts become what the networks read: a part of the model as trained, not of a call.

    Attributes:
        padding: ``masked`` (ours): the networks never see it; ``visible`` (IF): every prompt is padded to the model's
            ``max_length`` and the networks read all positions.
        null: text of the unconditional half: ``zero`` (ours), one zero token, or ``empty`` (IF), the encoding of "".
        lowercase: strip and lower-case prompts before they are encoded, as IF's captions were.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    padding: Padding = "masked"
    null: Null = "zero"
    lowercase: bool = False

    def __post_init__(self) -> None:
        check_choice("padding", self.padding, get_args(Padding))
        check_choice("null", self.null, get_args(Null))
        if not isinstance(self.lowercase, bool):
            raise ValueError(f"lowercase is {self.lowercase!r}; expected true or false")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> TextDefaults:
        """Build from the ``text`` entry of ``model_index.json``; None, as in formats 0 and 1, is ours.

        Raises:
            ValueError: an unknown key, naming the nearest known one, or a value that is none.
        """
        _check_keys(cls, values or {}, "text")
        try:
            return cls(**(values or {}))
        except ValueError as error:
            raise ValueError(f"text: {error}") from error


def _check_keys(cls: Any, values: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for a key that is no field of ``cls``, naming the nearest one that is."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; expected an object with the keys of {cls.__name__}")
    known = [entry.name for entry in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")


def check_steps(name: str, value: Any, high: int | None = None) -> int | str:
    """Return ``value`` if it is a number of steps from 1 to ``high``, or names a list. Raises: ValueError."""
    if isinstance(value, str):
        return check_choice(name, value, list(RESPACINGS))
    return check_int(name, value, 1, high)


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` as int if it is an integer, NumPy's too, in [low, high]. Raises: ValueError."""
    integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not integer or value < low or (high is not None and value > high):
        expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    return int(value)


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """Return ``value`` as float if it is a finite number in [low, high]. Raises: ValueError."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        expected = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} is {value!r}; expected a finite number {expected}")
    return float(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``. Raises: ValueError."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
    return str(value)


def read_stages(stages: Mapping[str, Any] | None, format_version: Any) -> dict[str, StageDefaults]:
    """Stored entries of ``model_index.json`` -> defaults per slot, migrated from older formats.

    Format 0 is a folder without ``format_version`` or ``stages`` entries: it gets the usual sizes and our defaults.
    Format 1 has no ``text`` entry (:class:`TextDefaults`), and numbers alone for ``num_inference_steps``. Formats up to
    2 have no ``lowres_consistency``: it was 0.

    Raises:
        ValueError: a format newer than this code, an unknown slot or key, a value out of range.
    """
    if format_version is not None and (isinstance(format_version, bool) or not isinstance(format_version, int)):
        raise ValueError(f"format_version is {format_version!r}; expected an integer from 0 to {FORMAT_VERSION}")
    if (format_version or 0) > FORMAT_VERSION:
        raise ValueError(
            f"this model has format_version {format_version}, newer than the {FORMAT_VERSION} this version of imagen "
            "reads; update imagen, or save the model again with an older one"
        )
    if not isinstance(stages or {}, Mapping):
        raise ValueError(f"stages is {stages!r}; expected sizes and defaults by slot ({', '.join(SLOTS)})")
    result = {}
    for slot, values in (stages or {}).items():
        if slot not in SLOTS:
            raise ValueError(f"stages: unknown stage {slot!r}; expected {', '.join(SLOTS)}")
        result[slot] = values if isinstance(values, StageDefaults) else StageDefaults.from_dict(values, f"stage {slot}")
    for slot in SLOTS:
        size, lowres_size = USUAL_SIZES[slot]
        result.setdefault(slot, StageDefaults(size=size, lowres_size=lowres_size))
    return {slot: result[slot] for slot in SLOTS}


def cropped(height: int, width: int, aspect: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the largest part of a picture whose height is to its width as ``aspect`` says."""
    scale = min(height / aspect[0], width / aspect[1])
    return max(1, round(aspect[0] * scale)), max(1, round(aspect[1] * scale))


def entry_side(
    stages: Mapping[str, StageDefaults], size: int | None, shape: tuple[int, int], picture: tuple[int, int]
) -> int:
    """Side of the square picture that fills a stage's input where ``picture`` fills it in a call for another ``shape``.

    Args:
        size: the square side of the last stage, or None for the model's largest.
        shape: height and width of the last stage's picture; (1, 1) for a square.
        picture: height and width of the one to start from, cropped to that shape.
    """
    if shape == (1, 1):
        return min(picture)
    last = size or max(defaults.size for defaults in stages.values())
    return min(side * last // whole for side, whole in zip(picture, shape, strict=True))


def route(stages: Mapping[str, StageDefaults], size: int | None = None, image_side: int | None = None) -> list[str]:
    """The slots a call runs, in order.

    Without a picture the cascade starts at the stage that needs none. A picture of side ``image_side`` enters at the
    last stage whose input it fills, so a 64 px picture goes through every super-resolution stage and a 256 px one (or
    a photograph of 700 px, reduced to 256) only through the last; smaller ones enter at the first.

    Args:
        stages: the defaults of the stages that are there.
        size: the side to stop at; None for the largest that can be reached.
        image_side: shorter side of the picture to start from, or None.

    Raises:
        ValueError: no stage makes that size or can start from what is given, or one in between is missing.
    """
    made = {defaults.size: slot for slot, defaults in stages.items()}
    if not made:
        raise ValueError("this pipeline has no stage: load a model with a network and a scheduler for at least one")
    if size is not None and size not in made:
        raise ValueError(f"size={size}: this model makes {_sizes(made)} px; choose one of these")
    if image_side is None:
        starts = [slot for slot in stages if stages[slot].lowres_size is None]
        if not starts:
            raise ValueError(f"this model has no base stage (only {', '.join(stages)}): give the picture to start from")
        start = starts[0]
    else:
        start = _entry(stages, image_side, size)
    chain = [start]
    while stages[chain[-1]].size != size:
        made_by_last = stages[chain[-1]].size
        follower = [slot for slot in stages if stages[slot].lowres_size == made_by_last and slot not in chain]
        if not follower:
            break
        chain.append(follower[0])
    reached = stages[chain[-1]].size
    if size is not None and reached != size:
        wanted = stages[made[size]].lowres_size
        raise ValueError(
            f"size={size}: stage {made[size]} starts from {wanted} px and no stage here makes those; the stages here "
            f"stop at {reached} px. Add the missing stage, or give a picture to start from"
        )
    return chain


def _entry(stages: Mapping[str, StageDefaults], image_side: int, size: int | None) -> str:
    needs = {slot: d.lowres_size for slot, d in stages.items() if d.lowres_size and (size is None or d.size <= size)}
    if not needs:
        limit = f" up to size={size}" if size is not None else ""
        raise ValueError(f"this model has no super-resolution stage{limit} that could start from a picture")
    filled = [slot for slot, lowres in needs.items() if lowres <= image_side]
    if filled:
        return max(filled, key=lambda slot: needs[slot])
    return min(needs, key=lambda slot: needs[slot])


def _sizes(made: Mapping[int, str]) -> str:
    return ", ".join(str(size) for size in sorted(made))


def per_stage(name: str, value: Any, running: Sequence[str], stages: Mapping[str, StageDefaults]) -> dict[str, Any]:
    """Spread a call's argument over the stages it runs: slot -> value, or None where the stage's default holds.

    Args:
        value: None, one value for all, a list or tuple (one per running stage, or one per stage of the model), or a
            dict keyed by the stage's size or slot.

    Raises:
        ValueError: a list of another length, or a key that is no stage of the model.
    """
    if isinstance(value, Mapping):
        by_key: dict[Any, str] = {stages[slot].size: slot for slot in stages} | {slot: slot for slot in stages}
        unknown = [key for key in value if key not in by_key]
        if unknown:
            known = ", ".join(str(stages[slot].size) for slot in stages)
            raise ValueError(f"{name} names stage {unknown[0]!r}; this model has {known}")
        named = {by_key[key]: entry for key, entry in value.items()}
        return {slot: named.get(slot) for slot in running}
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) == len(running):
            return dict(zip(running, value, strict=True))
        if len(value) == len(stages):
            return {slot: entry for slot, entry in zip(stages, value, strict=True) if slot in running}
        sizes = ", ".join(str(stages[slot].size) for slot in running)
        raise ValueError(f"{name} has {len(value)} values; expected one, or {len(running)} (for {sizes} px)")
    return dict.fromkeys(running, value)
