"""The contract of a network: what it needs of its users and what it promises them.

Whoever trains, samples, counts, exports or stores a network knows it by this file alone. Nothing here imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self, Union

from .options import by_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .conditioning import TextWhitening


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


class Network(Protocol):
    """A network of :data:`unets.NETWORKS`: a ``torch.nn.Module`` of diffusers' ModelMixin and ConfigMixin.

    Its constructor takes plain values, all with defaults and kept by ``@register_to_config``, among them in_channels,
    out_channels, lowres_channels and text_dim. A new network returns zeros, or what it skips from input to output.

    Attributes:
        config: the constructor's arguments.
        whitening: the map that makes encoder states uncorrelated, to be fitted before training; None: there is none.
        output_layer: name of the convolution or linear map whose rows are the output's numbers, channel by channel: the
            first half of them makes the first half of the channels.
        end_layers: names of the layers at input and output, tables of classes among them; the Muon optimizer trains the
            matrices of all others.
    """

    config: Any
    whitening: TextWhitening | None
    output_layer: ClassVar[str]
    end_layers: ClassVar[tuple[str, ...]]
    training: bool

    @staticmethod
    def sides_divisor(arguments: Mapping[str, Any]) -> int:
        """What the sides of pictures are multiples of, for all of the constructor's arguments."""

    @property
    def facts(self) -> Facts:
        """Its facts, as it is now."""

    def forward(
        self,
        sample: Tensor | None = None,
        timestep: Tensor | float | None = None,
        context: TextContext | None = None,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        lowres: Tensor | None = None,
        aug_timestep: Tensor | float | None = None,
        dropout_seeds: Tensor | None = None,
        conditions: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """The only entry point, which offloading, sharding and compilation wrap. It has two modes:

        - ``text`` alone, with its mask: the :class:`TextContext`, once per sample;
        - ``sample, timestep`` with ``context=`` or, in training, ``text=``: the output, of the sample's dtype.

        ``conditions`` holds what ``facts.classes`` and ``facts.extra_channels`` name, all of it, beside the sample.

        Padding of the text changes nothing, and no picture depends on the others of its batch: dropout, too, is a
        function of each picture's seed. See :meth:`unets.network.ConditionedNetwork.forward` for shapes and ranges.
        """

    def checkpoint_levels(self, levels: Sequence[int]) -> None:
        """Gradient checkpointing of these levels alone. Raises ValueError for one that does not exist."""

    def enable_gradient_checkpointing(self) -> None:
        """Gradient checkpointing of all levels."""

    def grown(self, weights: Mapping[str, Tensor], trained: Facts) -> dict[str, Tensor]:
        """Weights of a network with fewer classes and extra channels, made to fit this one, which then answers alike.

        Raises:
            ValueError: the trained network has some that this one lacks.
        """

    # torch's and diffusers' part, as far as it is used

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`forward`, with the hooks around it."""

    def train(self, mode: bool = True) -> Self:
        """Training mode, on or off."""

    def eval(self) -> Self:
        """Evaluation mode."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move it, or change its dtype."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether its weights are trained."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Its weights with their names."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""

    def state_dict(self) -> dict[str, Any]:
        """Weights and buffers by name."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take over weights and buffers."""

    def get_submodule(self, target: str) -> nn.Module:
        """The layer of that name."""

    def compile(self) -> None:
        """Let torch compile its forward."""

    def register_to_config(self, **arguments: Any) -> None:
        """Change entries of ``config``."""

    def save_config(self, save_directory: Any) -> None:
        """Write ``config`` as config.json."""


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
    parameters = inspect.signature(cls.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
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
