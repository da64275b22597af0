"""BaseUNet: the paper's 64x64 network (App. F.1), which is ADM's with text; also the family of DeepFloyd IF."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .blocks import DownLevel, MidLevel, UpLevel
from .level import Level, LevelText
from .options import Options, check_positive
from .unet import ConditionedUNet, check_levels


class BaseUNet(ConditionedUNet, ModelMixin, ConfigMixin):
    """The base diffusion U-Net (Imagen App. F.1; ADM's layout).

    Level i has ``model_channels * channel_mult[i]`` channels at 1/2^i of the resolution (after the patch stem). Each
    has residual blocks with FiLM by the time embedding and, where ``attention_levels`` names it, self-attention whose
    keys and values are preceded by those of the text. See :meth:`forward` for the ways to call it. Module names are
    those of diffusers' ``UNet2DConditionModel``, so IF's weights load by name.

    Args:
        model_channels: the paper's embed_dim, channels of the first level.
        channel_mult: channels of each level over ``model_channels``.
        num_res_blocks: residual blocks of each level: one number, or one per level.
        attention_levels: levels with attention. At 64 px the paper's resolutions 32, 16, 8 are levels 1, 2, 3.
        time_embed_dim: None: 4 * model_channels (ADM).

    All other arguments are described at :class:`unets.options.Options`.

    Raises:
        ValueError: options that contradict each other, naming them.
    """

    @staticmethod
    def sides_divisor(arguments: Mapping[str, Any]) -> int:
        """The patch, halved once less than there are levels."""
        return int(arguments["patch_size"]) * 2 ** (len(arguments["channel_mult"]) - 1)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        lowres_channels: int = 0,
        patch_size: int = 1,
        model_channels: int = 512,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_res_blocks: int | Sequence[int] = 3,
        attention_levels: Sequence[int] = (1, 2, 3),
        head_dim: int = 64,
        text_dim: int | None = 4096,
        text_whitening: bool = False,
        text_proj_dim: int | None = None,
        text_norm: str = "layer",
        text_pooling: str = "attention",
        pool_heads: int | None = None,
        time_embed_dim: int | None = None,
        activation: str = "silu",
        dropout: float = 0.0,
        norm_groups: int = 32,
        residual_scale: float = 1.0,
        input_skip: bool = False,
        head_channels: int | None = None,
        coordinates: bool = False,
        qk_norm: bool = False,
        classes: Mapping[str, int] | None = None,
        extra_channels: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        channels = [model_channels * mult for mult in channel_mult]
        depths = [num_res_blocks] * len(channels) if isinstance(num_res_blocks, int) else list(num_res_blocks)
        check_positive(model_channels=model_channels)
        check_levels(attention_levels, channel_mult=channel_mult, num_res_blocks=depths)
        options = Options.of(self.config, sinusoid_dim=model_channels, time_embed_dim=4 * model_channels)
        self._setup_input(options, channels[0])
        self._build_levels(channels, depths, set(attention_levels), options)
        self._setup_output(channels[0])

    def _build_levels(self, channels: list[int], depths: list[int], attention: set[int], blocks: Options) -> None:
        self.down_blocks = nn.ModuleList()
        skips, current, last = [channels[0]], channels[0], len(channels) - 1
        for i, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            down = i < last
            self.down_blocks.append(DownLevel(current, width, depth, blocks, attention=i in attention, downsample=down))
            skips += [width] * (depth + down)
            current = width
        # the paper is silent on the middle; ADM and IF attend there, so we do wherever the lowest level does
        self.mid_block = MidLevel(current, blocks, attention=last in attention)
        self.up_blocks = nn.ModuleList()
        for i in reversed(range(len(channels))):
            taken = [skips.pop() for _ in range(depths[i] + 1)]
            level = UpLevel(current, taken, channels[i], blocks, attention=i in attention, upsample=i > 0)
            self.up_blocks.append(level)
            current = channels[i]

    def _levels(self) -> list[Level]:
        return [*self.down_blocks, self.mid_block, *self.up_blocks]  # type: ignore[list-item]

    def _denoise(self, x: Tensor, emb: Tensor, text: LevelText, seeds: Tensor | None) -> Tensor:
        x = self.conv_in(x)
        return self._output(self._run_levels(x, emb, text, seeds, (x,)))
