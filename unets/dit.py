"""DiT: a transformer over patches of the picture (Peebles & Xie 2022), with the text as Imagen's U-Nets have it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .attention import TokenAttention, zero_init
from .conditioning import sinusoids
from .dropout import RowDropout, number_layers
from .level import Level, LevelText, Skips
from .network import Network
from .options import Options, check_positive
from .regions import Region


class DiTBlock(Region, Level):
    """Attention, then a perceptron, each on normed and modulated tokens and added times a gate (adaLN-zero, Fig. 3).

    Scale, shift and gate are linear in the embedding and start at zero, so that the block starts as the identity.
    Queries see the text's keys and values in front of the patches' (Imagen, App. D.3.1).
    """

    def __init__(self, width: int, mlp_ratio: int, options: Options) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attentions = nn.ModuleList([TokenAttention(width, options)])
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp_in = nn.Linear(width, mlp_ratio * width)
        self.dropout = RowDropout(options.dropout)
        self.mlp_out = nn.Linear(mlp_ratio * width, width)
        self.modulation = zero_init(nn.Linear(options.emb_dim, 6 * width))

    def run(self, x: Tensor, emb: Tensor, skips: Skips, text: LevelText, seeds: Tensor | None) -> tuple[Tensor, Skips]:
        """x (B, N, width) -> (B, N, width); see :class:`Level`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attend(0, modulate(self.norm1(x), shift1, scale1), text)
        hidden = F.gelu(self.mlp_in(modulate(self.norm2(x), shift2, scale2)), approximate="tanh")
        return x + gate2 * self.mlp_out(self.dropout(hidden, seeds)), ()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, C) times one plus scale (B, 1, C), plus shift."""
    return torch.addcmul(shift, x, 1 + scale)


def positions(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """What tells the patches apart: (height * width, dim) float32, half of it sinusoids of the row, half of the column.

    A function of the place alone, so that a network takes pictures of any size.
    """
    rows, columns = (sinusoids(torch.arange(n, device=device), dim // 2) for n in (height, width))
    rows, columns = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class DiT(Network, ModelMixin, ConfigMixin):
    """A diffusion transformer on patches (Peebles & Xie 2022); the defaults are their DiT-S, on pixels.

    Where they read a class, it reads text: pooled text is added to the time embedding, and every attention layer has
    the text's keys and values in front of its own. A low-resolution image is a further input, patch by patch. See
    :meth:`forward` for the ways to call it.

    Args:
        width: channels of a token; a multiple of 4 and of ``head_dim``.
        depth: number of blocks, each a level of ``checkpoint_levels``.
        mlp_ratio: width of a perceptron's hidden layer, over ``width``.
        time_embed_dim: None: width.

    All other arguments are described at :class:`unets.options.Options`.

    Raises:
        ValueError: options that contradict each other, naming them.
    """

    input_layer: ClassVar[str] = "proj_in"
    output_layer: ClassVar[str] = "proj_out"
    end_layers: ClassVar[tuple[str, ...]] = ("proj_in", "proj_out", "class_tables")
    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["DiTBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["DiTBlock"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["norm", "time_embedding", "modulation", *end_layers]

    @staticmethod
    def sides_divisor(arguments: Mapping[str, Any]) -> int:
        """The patch."""
        return int(arguments["patch_size"])

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        lowres_channels: int = 0,
        patch_size: int = 4,
        width: int = 384,
        depth: int = 12,
        head_dim: int = 64,
        mlp_ratio: int = 4,
        text_dim: int | None = 4096,
        text_whitening: bool = False,
        text_proj_dim: int | None = None,
        text_pooling: str = "attention",
        pool_heads: int | None = None,
        time_embed_dim: int | None = None,
        dropout: float = 0.0,
        input_skip: bool = False,
        qk_norm: bool = False,
        classes: Mapping[str, int] | None = None,
        extra_channels: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        check_positive(width=width, depth=depth, mlp_ratio=mlp_ratio)
        if width % 4:
            raise ValueError(f"width {width} is no multiple of 4, which sines and cosines of row and column share out")
        options = Options.of(self.config, sinusoid_dim=width, time_embed_dim=width)
        self.proj_in = nn.Linear(options.stem_channels, width)
        self._setup(options)
        self.blocks = nn.ModuleList([DiTBlock(width, mlp_ratio, options) for _ in range(depth)])
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation_out = zero_init(nn.Linear(options.emb_dim, 2 * width))
        self.proj_out = zero_init(nn.Linear(width, out_channels * patch_size**2))
        number_layers(self)

    def _levels(self) -> list[Level]:
        return [*self.blocks]  # type: ignore[list-item]

    def _denoise(self, x: Tensor, emb: Tensor, text: LevelText, seeds: Tensor | None) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.proj_in(x.flatten(2).transpose(1, 2))
        tokens = tokens + positions(height, width, tokens.shape[-1], x.device).to(tokens.dtype)
        tokens = self._run_levels(tokens, emb, text, seeds)
        shift, scale = self.modulation_out(emb)[:, None].chunk(2, dim=-1)
        out = self.proj_out(modulate(self.norm_out(tokens), shift, scale))
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height, width)), self.options.patch_size)
