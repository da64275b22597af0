"""Guidance: how a network's answers to one noisy picture become one estimate of the clean one.

A network can be asked in several ways, its *branches*: "conditional" with the text, "unconditional" without it (with
the null text or the negative prompt), "weak" with the text but by a worse network. A :class:`Guidance` says which of
them it may need, asks for them at every step, and combines what it gets.

One setting chooses it: names, with options in brackets, joined by ``+``. The last combines the branches; each before it
acts on what all that follow it make. ``cfg`` is understood where the last is left out. The scale w of equation 2 is a
setting of its own, guidance_scale: 1 is off, and then the conditional branch alone is evaluated.

No torch at import: the command line and the configuration check the setting before anything heavy is loaded.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from imagen.diffusion.guidance_base import Branch, Guidance, Guide, Wrapper, options_of

if TYPE_CHECKING:
    from torch import Tensor

    from imagen.diffusion.denoiser import Step


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """scale * cond + (1 - scale) * uncond (paper, equation 2); 1 is exactly cond. Same shape as the inputs, (B, ...).

    eps, v and x0 of one z are affine images of each other, so it does not matter which of them is guided.
    """
    return scale * cond + (1 - scale) * uncond


def conditional(step: Step) -> Tensor:
    """No guidance: x0 of the conditional branch, the only one evaluated."""
    return step.x0(*step.evaluate("conditional"))


@dataclass(frozen=True)
class CFG(Guidance):
    """Classifier-free guidance (paper, section 2.2, equation 2): away from what the network says without the text."""

    branches: ClassVar[tuple[Branch, ...]] = ("unconditional", "conditional")

    def start(self) -> Guide:
        """Away from the first branch; nothing is kept from step to step."""

        def away(step: Step) -> Tensor:
            worse, better = step.evaluate(*self.branches)
            return step.x0(guide(better, worse, step.scale))

        return away


@dataclass(frozen=True)
class Interval(Wrapper):
    """Guidance at some noise levels only (Kynkäänniemi et al. 2024, arXiv 2404.07724); elsewhere one evaluation.

    It stands first, for what it leaves out is no guidance at all. A picture is guided where low <= log-SNR <= high.
    The paper counts in sigma / alpha, of which log-SNR is -2 ln: its best interval for ImageNet at 512 px, 0.19 to
    1.61, is low=-0.95, high=3.32.

    Attributes:
        low, high: log-SNR; infinite is no limit, and one of them has to be one.
    """

    first: ClassVar[bool] = True

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high or (self.low, self.high) == (-math.inf, math.inf):
            raise ValueError(
                f"guidance interval has low={self.low}, high={self.high}; expected low < high in log-SNR, not both "
                "infinite"
            )

    def start(self) -> Guide:
        """What it acts on starts; that sees only the steps inside."""
        inner = self.of.start()

        def interval(step: Step) -> Tensor:
            inside = [self.low <= log_snr <= self.high for log_snr in step.log_snrs]
            if not any(inside):
                return conditional(step)
            guided = inner(step)
            if all(inside):
                return guided
            chosen = (step.log_snr >= self.low) & (step.log_snr <= self.high)
            return guided.where(chosen.reshape(-1, 1, 1, 1), conditional(step))

        return interval


@dataclass(frozen=True)
class APG(Guidance):
    """Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416): strong guidance without its loud colours.

    On x0, with u = x0 cond - x0 uncond: u gathers ``momentum`` times the u of the evaluation before, is shortened to
    the length ``norm``, loses all but ``eta`` of its part parallel to x0 cond, and x0 = x0 cond + (w - 1) u. With the
    defaults only that part is dropped; eta=1, norm=inf, momentum=0 is cfg.

    Attributes:
        eta: share of the parallel part that stays, in [0, 1]; the paper uses 0.
        norm: longest u of a picture over C, H, W, > 0. It counts in values, not in means: the same change at twice the
            side is twice as long. The paper uses 2.5 to 15, in latents.
        momentum: in (-1, 1); negative, as in the paper (-0.75 to -0.5), works against the steps before.
    """

    branches: ClassVar[tuple[Branch, ...]] = ("unconditional", "conditional")

    eta: float = 0.0
    norm: float = math.inf
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"guidance apg has eta={self.eta}; expected 0 to 1, the share of the parallel part kept")
        if not self.norm > 0:
            raise ValueError(f"guidance apg has norm={self.norm}; expected a positive length, inf is no limit")
        if not -1 < self.momentum < 1:
            raise ValueError(f"guidance apg has momentum={self.momentum}; expected a number between -1 and 1")

    def start(self) -> Guide:
        """The u of the evaluation before, of each picture, starts at nothing."""
        before: Tensor | None = None

        def apg(step: Step) -> Tensor:
            nonlocal before
            uncond, cond = (step.x0(output) for output in step.evaluate("unconditional", "conditional"))
            update = cond - uncond if before is None else cond - uncond + self.momentum * before
            before = update.detach()
            update = update * (self.norm / _dot(update, update).sqrt()).clamp(max=1).to(update.dtype)
            parallel = (_dot(update, cond) / _dot(cond, cond).clamp(min=1e-30)).to(cond.dtype) * cond
            return cond + (step.scale - 1) * (update - (1 - self.eta) * parallel)

        return apg


@dataclass(frozen=True)
class Rescaled(Wrapper):
    """What another guidance makes, given the contrast of the conditional picture (Lin et al. 2023, equations 14 to 16).

    x0 becomes phi x0 std(x0 cond) / std(x0) + (1 - phi) x0, the deviations of each picture over C, H, W. The paper
    (arXiv 2305.08891) does it to the network's v, which is -x0 at the noisiest level it is made for; here it is x0 at
    every level, so that it does not matter what a network predicts.

    Attributes:
        phi: in [0, 1]; 0 is off, the paper uses 0.7.
    """

    phi: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.phi <= 1:
            raise ValueError(f"guidance rescaled has phi={self.phi}; expected 0 (off) to 1, the paper uses 0.7")

    def start(self) -> Guide:
        """What it acts on starts; of its own nothing is kept."""
        inner = self.of.start()

        def rescaled(step: Step) -> Tensor:
            x0 = inner(step)
            ratio = _std(conditional(step)) / _std(x0).clamp(min=1e-30)
            return x0 * (self.phi * ratio + 1 - self.phi).to(x0.dtype)

        return rescaled


@dataclass(frozen=True)
class Auto(CFG):
    """Autoguidance (Karras et al. 2024, arXiv 2406.02507): away from what a worse network says with the same text.

    w * x0 of the network + (1 - w) * x0 of the weak one: equation 2 with the weak branch in the unconditional one's
    place, both conditional. The weak network makes the same mistakes, only larger: a smaller or less trained one of the
    same kind.
    """

    branches: ClassVar[tuple[Branch, ...]] = ("weak", "conditional")


#: The name in the setting, its class's in small letters -> the guidance. A new one adds its class here.
GUIDANCES: dict[str, type[Guidance]] = {cls.__name__.lower(): cls for cls in (APG, Auto, CFG, Interval, Rescaled)}


def branches(guidance: Guidance, scale: float) -> tuple[Branch, ...]:
    """What a run with this scale may evaluate: what of texts and networks has to be there."""
    return ("conditional",) if scale == 1 else guidance.branches


def parse_guidance(text: str) -> Guidance:
    """The guidance that a setting describes, such as "cfg"; ``str`` of it is the setting again, written out.

    Raises:
        ValueError: in one line, what is wrong and the nearest known name or option.
    """
    if not isinstance(text, str):
        raise ValueError(f"guidance is {text!r}; expected a text such as 'cfg'")
    made: Guidance | None = None
    for part in reversed(re.split(r"\+(?![^(]*\))", text)):  # + between parts, not in a number such as 1e+3
        name, options = _read(part, text)
        make: Callable[..., Guidance] = GUIDANCES[name]
        if issubclass(GUIDANCES[name], Wrapper):
            options = {**options, "of": made or CFG()}
        elif made is not None:
            raise ValueError(f"guidance {text!r}: {name} combines the branches and stands last, nothing may follow it")
        made = make(**options)
    assert made is not None
    return made


def check_guidance(text: str) -> str:
    """The setting with every option written out, as it is stored. Raises: ValueError as :func:`parse_guidance`."""
    return str(parse_guidance(text))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each picture (B, C, H, W) with its partner, summed in float64: (B, 1, 1, 1)."""
    return (a.double() * b.double()).flatten(1).sum(1).reshape(-1, 1, 1, 1)


def _std(pictures: Tensor) -> Tensor:
    """The standard deviation of each picture (B, C, H, W) over its values, in float64: (B, 1, 1, 1)."""
    return pictures.double().flatten(1).std(1).reshape(-1, 1, 1, 1)


def _read(part: str, text: str) -> tuple[str, dict[str, float | Guidance]]:
    """One part of a setting: its name, and its options by name."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", part)
    if match is None:
        raise ValueError(f"guidance {text!r}: cannot read {part!r}; expected name or name(option=number, ...)")
    name, inside = match[1], (match[2] or "").strip()
    if name not in GUIDANCES:
        raise ValueError(f"guidance {text!r}: {name!r} is unknown{_nearest(name, list(GUIDANCES))}")
    known = [field.name for field in options_of(GUIDANCES[name])]
    options: dict[str, float | Guidance] = {}
    for entry in inside.split(",") if inside else []:
        option, equals, value = (word.strip() for word in entry.partition("="))
        if option not in known:
            raise ValueError(f"guidance {text!r}: {name} has no option {option!r}{_nearest(option, known)}")
        if option in options:
            raise ValueError(f"guidance {text!r}: {name} is given {option} twice")
        try:
            options[option] = float(value)
        except ValueError:
            raise ValueError(f"guidance {text!r}: {option}{equals}{value} of {name} is no number") from None
    return name, options


def _nearest(word: str, known: list[str]) -> str:
    """The end of an error's line: what was probably meant, and what there is."""
    near = difflib.get_close_matches(word, known, n=1)
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" known: {', '.join(known) or 'none'}"
