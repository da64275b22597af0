"""The options that networks share: each is declared, checked and described here, once.

A network's constructor names those it has, with their types (a test compares), and takes them by :meth:`Options.of`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self


def check_positive(**options: int | None) -> None:
    """Raises ValueError naming the first option below 1; None, where an option may be left out, passes."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def by_name(option: Mapping[str, int] | None) -> dict[str, int]:
    """An option of numbers by name, in the order of the names: files may keep another order than they were given."""
    return {name: int(number) for name, number in sorted(dict(option or {}).items())}


def check_numbers(name: str, option: object) -> None:
    """Raises ValueError unless the option is None or has numbers of at least 1 under names a module can have."""
    fine = option is None or (
        isinstance(option, Mapping)
        and all(isinstance(key, str) and key.isidentifier() for key in option)
        and all(type(number) is int and number >= 1 for number in option.values())
    )
    if not fine:
        raise ValueError(f"{name} must be numbers of at least 1 by name, such as {{'label': 10}}, got {option!r}")


@dataclass(frozen=True)
class Options:
    """What a network and its blocks are told; an option that a constructor does not have keeps the value given here.

    Attributes:
        in_channels, out_channels: of the noisy image and of the output (6 for a learned variance of 3 channels).
        lowres_channels: channels of a low-resolution image concatenated to the input at the sample's size (the paper
            points to work that does so); 0: none, nor its noise level.
        patch_size: p folds p x p pixels into channels in front and unfolds them behind (ours, for small machines).
        text_dim: width of the encoder states; None: a network without text.
        text_whitening: make the encoder states uncorrelated first (:class:`TextWhitening`; ours), by a map that is
            fitted to the captions when training starts, and kept.
        text_proj_dim: width they are projected to in front of all attention layers; None: not projected (our reading of
            the paper; IF projects).
        text_norm: "layer" (paper, 2.5) or "group" (IF), in front of each attention layer's text projections.
        text_pooling: "attention" (paper), "mean" (its ablation), or "none"; pooled text is added to the time embedding.
        pool_heads: heads of attention pooling; None: heads of gcd(text_dim, 64) channels (the paper is silent).
        time_embed_dim: width of the time embedding; None: the network's own.
        time_input: the sinusoids see the "timestep" or "cosine_log_snr" (the paper has log-SNR, not how it enters).
        activation: "silu" (paper) or "gelu" (IF).
        dropout: in residual blocks, at least 0 and below 1.
        norm_groups: groups of the group norms; must divide every level's channels.
        residual_scale: factor on each residual sum; 1 (ADM, IF-I), 0.7071 (IF-II), 1/sqrt(2) (the paper says so of skip
            connections; the works it cites scale the residual sum).
        shortcut_conv: the residual block's 1x1 convolution: "always" (as Fig. A.27 draws it) or "if_needed".
        head_dim: channels of an attention head.
        qk_norm: norm queries and keys in every attention layer (ours: an optimizer such as Muon lets their products
            grow until every head looks at a single token, and learns no more).
        input_skip: add the noisy image and the low-resolution one to the output, each times a gain per channel that is
            linear in the embedding and starts at 0 and at 1 (ours, for networks that predict the image through a patch
            stem: narrow layers cannot carry every pixel of a nearly clean input past a nonlinearity).
        head_channels: width of a 1x1 convolution in front of the last norm; None: none (ours, for patch stems: the last
            activation then has more channels than a patch has numbers).
        coordinates: two more input channels say where each cell lies, -1 to 1 (CoordConv, Liu et al. 2018; ours, for
            small networks, which else know it by the padding of their convolutions alone).
        classes: for each name how many classes of that kind there are: a picture's is a learned vector that is added to
            the time embedding, with one more for no class (ADM, DiT; the paper has text alone).
        extra_channels: for each name the channels of a further input at the sample's size, such as a mask; they follow
            the noisy and the low-resolution image in the order of their names (GLIDE's inpainting; Nichol et al. 2021).
        sinusoid_dim: numbers that describe a timestep; no option but the network's own.

    Raises:
        ValueError: words and numbers that are not options.
    """

    WORDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text_norm": ("layer", "group"),
        "text_pooling": ("attention", "mean", "none"),
        "time_input": ("timestep", "cosine_log_snr"),
        "activation": ("silu", "gelu"),
        "shortcut_conv": ("always", "if_needed"),
    }
    COUNTS: ClassVar[tuple[str, ...]] = (
        *("in_channels", "out_channels", "patch_size", "text_dim", "text_proj_dim", "pool_heads"),
        *("time_embed_dim", "norm_groups", "head_dim", "head_channels"),
    )

    in_channels: int = 3
    out_channels: int = 3
    lowres_channels: int = 0
    patch_size: int = 1
    text_dim: int | None = 4096
    text_whitening: bool = False
    text_proj_dim: int | None = None
    text_norm: str = "layer"
    text_pooling: str = "attention"
    pool_heads: int | None = None
    time_embed_dim: int | None = None
    time_input: str = "timestep"
    activation: str = "silu"
    dropout: float = 0.0
    norm_groups: int = 32
    residual_scale: float = 1.0
    shortcut_conv: str = "if_needed"
    head_dim: int = 64
    qk_norm: bool = False
    input_skip: bool = False
    head_channels: int | None = None
    coordinates: bool = False
    classes: Mapping[str, int] | None = None
    extra_channels: Mapping[str, int] | None = None
    sinusoid_dim: int = 0

    def __post_init__(self) -> None:
        for name, allowed in self.WORDS.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_positive(**{name: getattr(self, name) for name in self.COUNTS})
        if self.lowres_channels < 0:
            raise ValueError(f"lowres_channels must be at least 0, which is none, got {self.lowres_channels}")
        check_numbers("classes", self.classes)
        check_numbers("extra_channels", self.extra_channels)
        twice = sorted((self.classes or {}).keys() & (self.extra_channels or {}).keys())
        if twice:
            raise ValueError(
                f"classes and extra_channels both have {twice[0]!r}; give each condition a name of its own"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not 0 < self.residual_scale < math.inf:  # nan, too
            raise ValueError(
                f"residual_scale must be above 0 and finite, got {self.residual_scale}; 1 leaves the sums alone"
            )
        if self.input_skip and not (
            self.out_channels == self.in_channels and self.lowres_channels in (0, self.out_channels)
        ):
            raise ValueError(
                f"input_skip adds the {self.in_channels} channels of the input (and the {self.lowres_channels} of the "
                f"low-resolution image) to the {self.out_channels} of the output; give all the same number"
            )

    @classmethod
    def of(cls, config: Mapping[str, Any], *, sinusoid_dim: int, time_embed_dim: int) -> Self:
        """Those that a network's ``config`` has; ``time_embed_dim`` is the network's own, where that says None."""
        names = {field.name for field in fields(cls)}
        given = {name: value for name, value in config.items() if name in names}
        if given.get("time_embed_dim") is None:
            given["time_embed_dim"] = time_embed_dim
        return cls(**given, sinusoid_dim=sinusoid_dim)

    @property
    def stem_channels(self) -> int:
        """Channels of all pictures that the network is given, behind the patch stem."""
        pictures = self.in_channels + self.lowres_channels + sum(by_name(self.extra_channels).values())
        return pictures * self.patch_size**2

    @property
    def emb_dim(self) -> int:
        """Width of the time embedding, which the network's own stands in for where none is given."""
        return 4 * self.sinusoid_dim if self.time_embed_dim is None else self.time_embed_dim

    @property
    def states_dim(self) -> int | None:
        """Width of the text states that attention layers see."""
        return self.text_dim if self.text_proj_dim is None else self.text_proj_dim
