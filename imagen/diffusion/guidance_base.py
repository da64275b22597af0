"""What every guidance is: settings that name branches, start a run and can be written as text. No torch at import."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from imagen.diffusion.denoiser import Step

Branch = Literal["conditional", "unconditional", "weak"]

#: One run's guidance: a step to the guided x0 (B, C, H, W), not yet thresholded. What it remembers is its closure's.
Guide = Callable[["Step"], "Tensor"]


@dataclass(frozen=True)
class Guidance(ABC):
    """The settings of a guidance; a subclass is a frozen dataclass of numbers, with a line in guidance.GUIDANCES."""

    @property
    def gradient(self) -> bool:
        """Whether it differentiates through the network; then ``step.z`` requires a gradient."""
        return False

    @property
    @abstractmethod
    def branches(self) -> tuple[Branch, ...]:
        """What it may evaluate in one step; their number is its cost. At a scale of 1 only "conditional" is."""

    @abstractmethod
    def start(self) -> Guide:
        """Begin one run of one stage; what is kept from step to step starts anew here.

        What it returns is called at the steps whose ``step.scale`` is not 1; there guidance is off.
        """

    def __str__(self) -> str:
        """The setting that :func:`~imagen.diffusion.guidance.parse_guidance` reads, with every option written out."""
        options = [f"{field.name}={_number(getattr(self, field.name))}" for field in options_of(type(self))]
        name = type(self).__name__.lower()
        return f"{name}({', '.join(options)})" if options else name


@dataclass(frozen=True)
class Wrapper(Guidance):
    """A guidance that acts on what another makes, its field ``of``."""

    first: ClassVar[bool] = False  # whether it has to stand before every other

    of: Guidance

    def __post_init__(self) -> None:
        name, inner = type(self).__name__.lower(), self.of
        while isinstance(inner, Wrapper):
            if type(inner) is type(self):
                raise ValueError(f"guidance {str(self)!r} has {name} twice; give it once")
            if inner.first:
                raise ValueError(f"guidance {str(self)!r}: {type(inner).__name__.lower()} has to stand first")
            inner = inner.of

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Those of the guidance that it acts on."""
        return self.of.branches

    @property
    def gradient(self) -> bool:
        """Whether the guidance that it acts on needs one."""
        return self.of.gradient

    def __str__(self) -> str:
        return f"{super().__str__()}+{self.of}"


def options_of(cls: type[Guidance]) -> list[dataclasses.Field[float]]:
    """The fields of a guidance that a setting may give."""
    return [field for field in dataclasses.fields(cls) if field.name != "of"]


def _number(value: float) -> str:
    """As short as reads back the same."""
    return repr(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
