"""Samplers by name: how a step rule and its options are written, in presets, on the command line, in comparisons."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml
from diffusers import DPMSolverSinglestepScheduler

from imagen.checks import check_choice
from imagen.diffusion.sampling import SAMPLERS
from imagen.errors import one_line

#: Those of :func:`imagen.diffusion.sampling.make_scheduler`, and one that no new stage is stored with.
KINDS: dict[str, type] = {**SAMPLERS, "singlestep": DPMSolverSinglestepScheduler}


class Sampler(NamedTuple):
    """A scheduler's class and its options, and how they were written."""

    text: str
    cls: Any
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Sampler:
        """``NAME`` or ``NAME(option, option=value, ...)``; an option without a value is true.

        Raises:
            ValueError: not written so, an unknown name, or an option that its scheduler has not.
        """
        match = re.fullmatch(r"([\w+]+)(?:\((.*)\))?", text.replace(" ", ""))
        if match is None:
            raise ValueError(f"sampler {text!r}: write NAME or NAME(option=value, ...), as heun(use_karras_sigmas)")
        kind = KINDS[check_choice("sampler", match[1], list(KINDS))]
        options: dict[str, Any] = {}
        for part in filter(None, (match[2] or "").split(",")):
            name, equals, value = part.partition("=")
            if name not in inspect.signature(kind).parameters:
                raise ValueError(f"sampler {text!r}: {kind.__name__} has no option {name!r}")
            try:
                options[name] = yaml.safe_load(value) if equals else True
            except yaml.YAMLError as error:
                raise ValueError(f"sampler {text!r}: {value!r} is no value of {name}") from error
        return cls(text, kind, options)

    def of(self, scheduler: Any) -> Any:
        """This sampler with the levels of a stage's scheduler."""
        config = {name: value for name, value in scheduler.config.items() if name != "gamma"}
        try:
            return self.cls.from_config(config, **self.options)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise ValueError(f"sampler {self.text!r}: {one_line(error)}") from error
