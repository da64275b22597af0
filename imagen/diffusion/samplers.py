"""Samplers by name, as a setting: ``euler``, or with options of diffusers ``dpm++(use_exponential_sigmas)``.

No torch at import: command line and configuration check the setting before anything heavy is loaded. Whether a
scheduler has the options is known when the setting is put to use (:func:`resampled`).
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from imagen.checks import check_choice
from imagen.diffusion.vocabulary import SamplerKind
from imagen.errors import one_line

#: Those that a stage can be stored with, and one that is only asked for.
KINDS = (*get_args(SamplerKind), "singlestep")
#: Options of schedulers that say what a stage's network was trained with, or that our loop does itself.
OF_STAGES = (
    *("prediction_type", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("rescale_betas_zero_snr", "use_flow_sigmas", "flow_shift", "thresholding", "dynamic_thresholding_ratio"),
    *("sample_max_value", "clip_sample", "clip_sample_range"),
)
_WORDS = {"true": True, "false": False, "null": None}


class Sampler(NamedTuple):
    """A step rule's name and the options of its scheduler; ``str`` of it is the setting, written in one way."""

    kind: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        written = [name if value is True else f"{name}={_written(value)}" for name, value in self.options.items()]
        return self.kind + (f"({','.join(written)})" if written else "")

    @classmethod
    def parse(cls, text: str) -> Sampler:
        """``NAME`` or ``NAME(option, option=value, ...)``; an option without a value is true.

        Raises:
            ValueError: not written so, an unknown name, a value that is none, or an option twice.
        """
        match = re.fullmatch(r"([\w+]+)(?:\((.*)\))?", text.replace(" ", "")) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"sampler {text!r}: write NAME or NAME(option=value, ...), as heun(use_karras_sigmas)")
        kind = check_choice("sampler", match[1], KINDS)
        options: dict[str, Any] = {}
        for part in filter(None, (match[2] or "").split(",")):
            name, equals, value = part.partition("=")
            if name in options:
                raise ValueError(f"sampler {text!r}: it is given {name} twice")
            if equals and not re.fullmatch(r"[\w.+-]+", value):
                raise ValueError(f"sampler {text!r}: {value!r} is no value of {name}")
            options[name] = _read(value) if equals else True
        return cls(kind, options)


def parse_sampler(text: Any) -> str:
    """The setting, written in one way. Raises: ValueError, as :meth:`Sampler.parse`."""
    return str(Sampler.parse(text))


def resampled(scheduler: Any, sampler: str) -> Any:
    """A scheduler that steps as a setting says, with the levels of another and what its network predicts.

    ddpm keeps a learned variance; the others drop it.

    Args:
        sampler: the setting.

    Raises:
        ValueError: not a sampler, an option that its scheduler has not or that is the stage's, or a value that it does
            not take.
    """
    from imagen.diffusion.sampling import STEP_RULES

    asked = Sampler.parse(sampler)
    cls: Any = STEP_RULES[asked.kind]
    known = inspect.signature(cls).parameters
    for name, value in asked.options.items():
        if name not in known:
            raise ValueError(f"sampler {sampler!r}: {cls.__name__} has no option {name!r}")
        if name in OF_STAGES:
            raise ValueError(f"sampler {sampler!r}: {name} is the stage's own, which a sampler keeps; leave it out")
        if not _fits(value, known[name].default):
            usual = known[name].default
            raise ValueError(f"sampler {sampler!r}: {name} is {value!r}; expected a value such as {_written(usual)}")
    # gamma is ddpm's own, and diffusers warns of what a class does not know
    config = {name: value for name, value in scheduler.config.items() if name != "gamma"}
    try:
        return cls.from_config(config, **asked.options)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"sampler {sampler!r}: {one_line(error)}") from error


def _fits(value: Any, usual: Any) -> bool:
    """Whether a value is of the kind of an option's own; of an option without one, or with null, it may be any."""
    if usual is None or usual is inspect.Parameter.empty:
        return True
    if isinstance(usual, bool) or not isinstance(usual, int | float):
        return type(value) is type(usual)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return number and (isinstance(usual, float) or isinstance(value, int))


def _read(word: str) -> Any:
    """A number, true, false or null; any other word is itself."""
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def _written(value: Any) -> str:
    """As it is read back."""
    return next((word for word, meant in _WORDS.items() if value is meant), str(value))
