"""A stage's settings, declared once.

One line of :class:`SamplingSettings` is all that is said of a sampling setting: the YAML section ``sampling``, what a
stage stores, the option of sample.py, the command recorded in a picture, the checks and the reading of older formats
follow from it. What is written out beside it is what a person reads there: the arguments of ``ImagenPipeline.__call__``
(compared with the declaration by a test) and the mathematics that acts on the setting.

No torch here, so that the command line can check a model folder before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

from imagen.checks import check_choice, check_int, check_keys, check_number
from imagen.diffusion.guidance import check_guidance
from imagen.diffusion.samplers import parse_sampler
from imagen.diffusion.timesteps import RESPACINGS, count_steps
from imagen.diffusion.vocabulary import AugSpace, ResizeMode, ThresholdKind

FORMAT_VERSION = 5
"""Of what is stored (``model_index.json`` and ``stage.json``). 0 had no entries of stages. 1 did not say how text is
read, and had numbers alone for ``num_inference_steps``. 2 had no ``lowres_consistency``, 3 no ``guidance``,
4 no ``sampler`` and no presets."""
SLOTS = ("base", "sr256", "sr1024")
EARLIER_NAMES = {"base64": "base"}
"""Slots as runs named them once, which are read and never written."""
SAFETY = ("safety_checker", "feature_extractor", "watermarker")
"""Components beside the stages that some released checkpoints carry."""
AUG_SCHEDULE_KEYS = ("kind", "shift", "max_log_snr", "s", "beta_start", "beta_end")

Check = Callable[[str, Any], Any]
"""(name, value) -> the value as it is kept; raises ValueError with the name, the value and what was expected."""


@dataclass(frozen=True)
class Setting:
    """What is to be said of a sampling setting beside its name, type and default.

    Attributes:
        check: its range.
        help: one phrase, for configurations and the command line.
        since: the format version that first stored it; a folder of an older one samples with ``before``.
        flag: option of sample.py and argument of the pipeline's call; None: stored alone, a part of the model.
        metavar, parse: how the option is written.
        written: examples of it, told where it cannot be read; None: ``parse`` itself says what is wrong.
        from_picture: of stages that start from a picture alone.
    """

    check: Check
    help: str
    since: int = 0
    before: Any = None
    flag: str | None = None
    metavar: str = "VALUE"
    parse: Callable[[str], Any] = float
    written: str | None = "5  or  5,3,1.5  or  64=5,256=3"
    from_picture: bool = False

    def told(self, text: str, error: ValueError) -> str:
        """What to say of words of the command line that ``parse`` did not take."""
        return str(error) if self.written is None else f"{text!r} is not understood; write {self.written}"


def setting(default: object, check: Check, help: str, **facts: Any) -> Any:
    """A field of :class:`SamplingSettings`; arguments beside the default as those of :class:`Setting`."""
    return field(default=default, metadata={"setting": Setting(check, help, **facts)})


def optional(check: Check) -> Check:
    """None, or what ``check`` accepts."""
    return lambda name, value: None if value is None else check(name, value)


def check_steps(name: str, value: Any, high: int | None = None) -> int | str:
    """Return ``value`` if it is a number of steps from 1 to ``high``, or names a list. Raises: ValueError."""
    if isinstance(value, str):
        return check_choice(name, value, list(RESPACINGS))
    return check_int(name, value, 1, high)


def parse_steps(word: str) -> int | str:
    """A word of the command line as a number of steps, or the name of a list. Raises: ValueError."""
    return word if word in RESPACINGS else int(word)


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How a stage samples unless a call says otherwise. The paper gives no step counts; these are our choice.

    Raises:
        ValueError: naming the setting, its value and what was expected.
    """

    num_inference_steps: int | str = setting(
        50,
        check_steps,
        "network evaluations, or the name of a list of timesteps such as smart50; the paper gives no number",
        flag="--steps",
        metavar="STEPS",
        parse=parse_steps,
        written=f"50  or  50,20,10  or  64=50,256=20, or one of the lists {', '.join(RESPACINGS)}",
    )
    guidance_scale: float = setting(
        5.0, partial(check_number, low=0), "guidance scale, w of eq. 2; 1 is off", flag="--guidance", metavar="GUIDANCE"
    )
    guidance: str = setting(
        "cfg",
        lambda name, value: check_guidance(value),
        "what guides: cfg, apg, auto, each perhaps behind interval(low=..., high=...) or rescaled(phi=...) and a +",
        since=4,
        before="cfg",
        flag="--guidance-method",
        metavar="METHOD",
        parse=check_guidance,
        written=None,
    )
    sampler: str | None = setting(
        None,
        optional(lambda name, value: parse_sampler(value)),
        "step rule, such as dpm++(use_exponential_sigmas); null is the stage's own scheduler",
        since=5,
        flag="--sampler",
        metavar="SAMPLER",
        parse=parse_sampler,
        written=None,
    )
    threshold: ThresholdKind = setting(  # noqa: RUF009 - it is a field
        "dynamic",
        partial(check_choice, choices=get_args(ThresholdKind)),
        "what keeps x0 estimates in [-1, 1] at every step (section 2.3)",
    )
    threshold_p: float = setting(
        0.995,
        partial(check_number, low=1e-6, high=1),
        "quantile of |x0| for dynamic thresholding (section 2.3, Fig. A.10)",
    )
    threshold_cap: float | None = setting(
        None, optional(partial(check_number, low=1)), "upper bound of that quantile; null is the paper's, 1.5 is IF's"
    )
    aug_level: float = setting(
        0.1,
        partial(check_number, low=0, high=1),
        "noise on the low-res picture, 0 to 1; the paper's best-looking samples use 0.1 to 0.3 (D.2)",
        flag="--aug-level",
        metavar="LEVEL",
        from_picture=True,
    )
    lowres_consistency: int = setting(
        0,
        partial(check_int, low=0),
        "keep the low-res picture's mean colours over cells of so many of its pixels; 0 (the paper) is off",
        since=3,
        before=0,
        flag="--lowres-consistency",
        metavar="PX",
        parse=int,
        from_picture=True,
    )

    def __post_init__(self) -> None:
        for name, declared in SETTINGS.items():  # NumPy's numbers become Python's, which JSON can hold
            object.__setattr__(self, name, declared.check(name, getattr(self, name)))

    @property
    def steps(self) -> int:
        """Network evaluations, also where ``num_inference_steps`` names a list."""
        return count_steps(self.num_inference_steps)


SETTINGS: dict[str, Setting] = {entry.name: entry.metadata["setting"] for entry in dataclasses.fields(SamplingSettings)}
"""Every declared setting by name, in order."""
OF_CALLS: dict[str, str] = {name: declared.flag for name, declared in SETTINGS.items() if declared.flag is not None}
"""Those that a call may set in place of what is stored: argument of the pipeline -> option of sample.py."""


@dataclass(frozen=True, kw_only=True)
class StageDefaults(SamplingSettings):
    """What the pipeline knows of a stage beyond its network and scheduler: sizes, how it was trained, how it samples.

    Attributes:
        size: side of the picture it makes, in pixels.
        lowres_size: side of the picture it starts from; None for a stage that starts from text (or nothing).
        aug_space: where noise is added to that picture: ``lowres`` (before resizing, ours) or ``upsampled`` (IF).
        aug_schedule: the schedule that turns ``aug_level`` into noise, as the arguments of
            :func:`imagen.diffusion.schedules.make_schedule`; empty for the cosine (the paper is silent).
        lowres_mode: how the small picture is enlarged, a mode of :func:`imagen.diffusion.augmentation.resize`.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    size: int
    lowres_size: int | None = None
    aug_space: AugSpace = "lowres"
    aug_schedule: Mapping[str, Any] = field(default_factory=dict)
    lowres_mode: ResizeMode = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "size", check_int("size", self.size, 1))
        if self.lowres_size is not None:
            object.__setattr__(self, "lowres_size", check_int("lowres_size", self.lowres_size, 1, self.size))
        elif self.lowres_consistency:
            raise ValueError(f"lowres_consistency is {self.lowres_consistency}; expected 0 without lowres_size")
        check_choice("aug_space", self.aug_space, get_args(AugSpace))
        check_choice("lowres_mode", self.lowres_mode, get_args(ResizeMode))
        if not isinstance(self.aug_schedule, Mapping) or not set(self.aug_schedule) <= {*AUG_SCHEDULE_KEYS}:
            raise ValueError(f"aug_schedule is {self.aug_schedule!r}; expected keys {', '.join(AUG_SCHEDULE_KEYS)}")

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], where: str = "stage", format_version: int = FORMAT_VERSION
    ) -> StageDefaults:
        """Build from a plain dict (``stage.json``, ``model_index.json``).

        Args:
            format_version: of the folder that it stood in; settings that came later are what they were before.

        Raises:
            ValueError: an unknown key, naming the nearest known one; no ``size``; or a value out of range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} is {values!r}; expected an object with the keys of {cls.__name__}")
        check_keys(values, [entry.name for entry in dataclasses.fields(cls)], where)
        if "size" not in values:
            raise ValueError(f"{where}: no 'size'; give the side of the picture this stage makes, in pixels")
        before = {name: entry.before for name, entry in SETTINGS.items() if entry.since > format_version}
        try:
            return cls(**{**before, **values})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Every field, so that a stored stage does not move when a default of the code does."""
        return {**dataclasses.asdict(self), "aug_schedule": dict(self.aug_schedule)}


USUAL = {
    "base": StageDefaults(size=64),
    "sr256": StageDefaults(size=256, lowres_size=64),
    "sr1024": StageDefaults(size=1024, lowres_size=256),
}


def slot_named(name: str) -> str:
    """The slot of that name, or of that earlier name. Raises: ValueError for a name that is none."""
    return check_choice("stage name", EARLIER_NAMES.get(name, name), SLOTS)


def check_version(format_version: Any, what: str = "this model") -> int:
    """The format version of a folder, 0 where it has none. Raises: ValueError for none, or one newer than this code."""
    if format_version is None:
        return 0
    if check_int("format_version", format_version, 0) > FORMAT_VERSION:
        raise ValueError(
            f"{what} has format_version {format_version}, newer than the {FORMAT_VERSION} this version of imagen "
            "reads; update imagen, or save the model again with an older one"
        )
    return int(format_version)


def read_stages(stages: Mapping[str, Any] | None, format_version: Any) -> dict[str, StageDefaults]:
    """Stored entries of ``model_index.json`` -> defaults per slot, migrated from older formats.

    A folder without entries gets the usual sizes and our defaults.

    Raises:
        ValueError: a format newer than this code, an unknown slot or key, a value out of range.
    """
    version = check_version(format_version)
    if not isinstance(stages or {}, Mapping):
        raise ValueError(f"stages is {stages!r}; expected sizes and defaults by slot ({', '.join(SLOTS)})")
    check_keys(stages or {}, SLOTS, "stages")
    return {
        slot: values if isinstance(values, StageDefaults) else StageDefaults.from_dict(values, f"stage {slot}", version)
        for slot, values in {**USUAL, **(stages or {})}.items()
    }
