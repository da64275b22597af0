"""What is known of a network without building it, and what it makes of a text.

What a network needs of its users and promises them is said by :class:`unets.network.Network`. No torch at import.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from .options import by_name

if TYPE_CHECKING:
    from torch import Tensor

    from .network import Network


class TextContext(NamedTuple):
    """Everything a network needs of a text, computed once per sample.

    A named tuple of tensors, so device moves, offload hooks, sharding and compilation handle it as they do any output.

    Attributes:
        pooled: (B, T) pooled text, added to the time embedding (T its width); None without pooling.
        keys, values: one (B, L, inner) tensor per attention layer that sees text, in the order they run.
        mask: (B, L) bool, True at real tokens; None when all are.
    """

    pooled: Tensor | None
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None

    def select(self, index: Tensor) -> TextContext:
        """The rows ``index`` (N,) of the batch, repeats allowed: one prompt's context for several pictures."""
        return TextContext(
            None if self.pooled is None else self.pooled[index],
            tuple(key[index] for key in self.keys),
            tuple(value[index] for value in self.values),
            None if self.mask is None else self.mask[index],
        )


@dataclass(frozen=True)
class Facts:
    """What follows from a network's name and the arguments of its constructor, with or without its weights.

    Attributes:
        kind: its name in :data:`unets.NETWORKS`.
        in_channels: of the noisy picture. out_channels: of the output; twice as many for a learned variance.
        lowres_channels: of the low-resolution picture that it starts from; 0: it starts from none.
        text_dim: width of the encoder states; None: a network without text.
        classes: for each name how many classes there are; that number itself is no class.
        extra_channels: for each name the channels of a further picture at the sample's size, in the stem's order.
        divisor: height and width of the pictures are multiples of it.
    """

    kind: str
    in_channels: int
    out_channels: int
    lowres_channels: int
    text_dim: int | None
    classes: dict[str, int]
    extra_channels: dict[str, int]
    divisor: int

    @property
    def learns_variance(self) -> bool:
        """Whether it says a variance beside what it predicts: two numbers for each of its input."""
        return self.out_channels == 2 * self.in_channels

    @property
    def guidable(self) -> bool:
        """Whether it reads something that has a null to guide away from: text, or classes."""
        return self.text_dim is not None or bool(self.classes)


def network_class(kind: object) -> type[Network]:
    """The registered network of that name.

    Raises:
        ValueError: there is none.
    """
    import unets

    if kind not in unets.NETWORKS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(unets.NETWORKS)}")
    found: type[Network] = getattr(unets, str(kind))
    return found


def registered() -> tuple[str, ...]:
    """The names of all networks."""
    import unets

    return tuple(unets.NETWORKS)


def any_network() -> Any:
    """The union of all registered networks, for annotations that diffusers compares with a component's class."""
    import unets

    return Union[tuple(network_class(kind) for kind in unets.NETWORKS)]  # noqa: UP007 - of a tuple


def facts(section: Mapping[str, Any]) -> Facts:
    """The facts of a configuration's section, ``kind`` and constructor arguments, without building the network.

    What the section leaves out has the constructor's default.

    Raises:
        ValueError: no such kind, or an argument of another type.
    """
    kind = section.get("kind")
    cls = network_class(kind)
    defaults = {p.name: p.default for p in inspect.signature(cls.__init__).parameters.values()}
    try:
        arguments = {**defaults, **section}
        return facts_of(cls.__name__, cls.sides_divisor(arguments), arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"arguments of {kind}: {error}") from error


def facts_of(kind: str, divisor: int, arguments: Mapping[str, Any]) -> Facts:
    """The facts of a network of this kind with these arguments, which are all that its constructor has."""
    width = arguments["text_dim"]
    return Facts(
        kind=kind,
        in_channels=int(arguments["in_channels"]),
        out_channels=int(arguments["out_channels"]),
        lowres_channels=int(arguments["lowres_channels"]),
        text_dim=None if width is None else int(width),
        classes=by_name(arguments["classes"]),
        extra_channels=by_name(arguments["extra_channels"]),
        divisor=divisor,
    )
