"""What both networks are conditioned on: time, text and the augmentation level; and the one ``forward`` they share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Level, activation


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

    def select(self, index: Tensor) -> "TextContext":
        """The rows ``index`` (N,) of the batch, repeats allowed: one prompt's context for several pictures."""
        return TextContext(
            None if self.pooled is None else self.pooled[index],
            tuple(key[index] for key in self.keys),
            tuple(value[index] for value in self.values),
            None if self.mask is None else self.mask[index],
        )


class TimestepEmbedding(nn.Module):
    """Linear, activation, linear on sinusoidal features (DDPM)."""

    def __init__(self, in_dim: int, out_dim: int, act: str) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, out_dim)
        self.act = activation(act)
        self.linear_2 = nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) -> (B, out_dim)."""
        return self.linear_2(self.act(self.linear_1(x)))


def sinusoids(timestep: Tensor, dim: int) -> Tensor:
    """cos and sin of timestep (B,) at dim/2 geometric frequencies from 1 to 1/10000, (B, dim) float32 (DDPM; ADM's order)."""
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep[:, None].float() * torch.exp(exponent)[None, :]
    return F.pad(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1), (0, dim - 2 * half))


class AttentionPooling(nn.Module):
    """One query, the mean token plus a learned vector, attends to itself and all tokens (as DeepFloyd IF pools its text).

    The paper says "attention pooled" and no more (2.5); this form is the one with public weights.
    """

    def __init__(self, dim: int, heads: int, float32_softmax: bool) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"pool_heads {heads} does not divide the text width {dim}; choose a divisor")
        self.heads = heads
        self.float32_softmax = float32_softmax
        self.positional_embedding = nn.Parameter(torch.randn(1, dim) / dim**0.5)
        self.k_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)

    def forward(self, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """text (B, L, D), mask (B, L) bool or None -> (B, D)."""
        batch, _, dim = text.shape
        query = masked_mean(text, mask)[:, None] + self.positional_embedding.to(text.dtype)
        tokens = torch.cat([query, text], dim=1)
        q, k, v = (
            t.view(batch, -1, self.heads, dim // self.heads).transpose(1, 2)
            for t in (self.q_proj(query), self.k_proj(tokens), self.v_proj(tokens))
        )
        scale = (dim // self.heads) ** -0.25
        logits = (q * scale) @ (k * scale).transpose(-1, -2)
        if mask is not None:
            logits = logits.masked_fill(~F.pad(mask, (1, 0), value=True)[:, None, None, :], float("-inf"))
        half = logits.dtype in (torch.float16, torch.bfloat16)
        weight = torch.softmax(logits.float() if half or self.float32_softmax else logits, dim=-1).to(v.dtype)
        return (weight @ v).transpose(1, 2).reshape(batch, dim)


def masked_mean(text: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens: (B, L, D) -> (B, D)."""
    if mask is None:
        return text.mean(dim=1)
    weight = mask[:, :, None].to(text.dtype)
    return (text * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class TextPooling(nn.Module):
    """Layer norm, pooling, linear to the time embedding's width, layer norm (2.5: "layer normalization ... in pooling").

    Args:
        dim, out_dim: widths of text and time embedding.
        kind: "attention" (the paper) or "mean" (its ablation, D.1).
        heads: of attention pooling; None: heads of gcd(dim, 64) channels.
        float32_softmax: round the pooling's softmax to float32 even in a float64 network, as IF's released code does.
    """

    def __init__(self, dim: int, out_dim: int, kind: str, heads: int | None, float32_softmax: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        heads = dim // math.gcd(dim, 64) if heads is None else heads
        self.pool = AttentionPooling(dim, heads, float32_softmax) if kind == "attention" else None
        self.proj = nn.Linear(dim, out_dim)
        self.norm2 = nn.LayerNorm(out_dim)

    def forward(self, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """text (B, L, D), mask (B, L) bool or None -> (B, out_dim)."""
        text = self.norm1(text)
        pooled = masked_mean(text, mask) if self.pool is None else self.pool(text, mask)
        return self.norm2(self.proj(pooled))


class LevelText(NamedTuple):
    """What levels get of the text: states (B, L, D) to project, or keys and values projected before; and the mask."""

    states: Tensor | None = None
    keys_values: tuple[tuple[Tensor, Tensor], ...] = ()
    mask: Tensor | None = None

    def take(self, start: int, count: int) -> "LevelText":
        """The part of attention layers start, ..., start + count - 1."""
        return LevelText(self.states, self.keys_values[start : start + count], self.mask)


@dataclass(frozen=True)
class ConditioningOptions:
    """What both networks share of their configuration."""

    in_channels: int
    lowres_channels: int
    patch_size: int
    divisor: int
    sinusoid_dim: int
    emb_dim: int
    activation: str
    text_dim: int | None
    text_proj_dim: int | None
    text_norm: str = "layer"
    text_pooling: str = "attention"
    pool_heads: int | None = None
    time_input: str = "timestep"

    def check(self) -> None:
        """Raises ValueError for words that are not options."""
        words = {
            "text_norm": ("layer", "group"),
            "text_pooling": ("attention", "mean", "none"),
            "time_input": ("timestep", "cosine_log_snr"),
        }
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("in_channels", "patch_size", "emb_dim", "sinusoid_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def trim(text: Tensor, mask: Tensor, sync: bool) -> tuple[Tensor, Tensor | None]:
    """Cuts columns that are padding in every row, and drops a mask that is all True (attention is faster without one).

    Looking at the mask's values would wait for a GPU and break a compiled graph: only where ``sync`` says so, or on CPU.
    """
    if torch.compiler.is_compiling() or mask.is_meta or not (sync or mask.device.type == "cpu"):
        return text, mask
    used = mask.any(dim=0).nonzero()
    length = int(used[-1]) + 1 if len(used) else 1
    text, mask = text[:, :length], mask[:, :length]
    return text, None if bool(mask.all()) else mask


def cosine_log_snr_coordinate(timestep: Tensor) -> Tensor:
    """log-SNR of the cosine schedule (s = 0.008) at timestep (B,), mapped from [20, -20] to [0, 1000].

    The paper writes its network as a function of the log-SNR (App. A) and does not say how it is fed in.
    """
    t = (timestep.double() + 0.5) / 1000
    log_snr = -2 * torch.log(torch.tan((t + 0.008) / 1.008 * (math.pi / 2)).clamp(min=1e-6))
    return (20 - log_snr.clamp(-20, 20)) * 25


class ConditionedUNet(nn.Module):
    """The conditioning and the one ``forward`` of both networks; a subclass builds its levels and gives ``_denoise``."""

    _gradient_checkpointing_func: Callable[..., Any]

    def _setup(self, options: "ConditioningOptions") -> None:
        """Builds the modules of time, augmentation level and text. Names are diffusers' (the IF family's)."""
        options.check()
        self.options = options
        self.gradient_checkpointing = False
        width, emb_dim, act = options.sinusoid_dim, options.emb_dim, options.activation
        self.time_embedding = TimestepEmbedding(width, emb_dim, act)
        self.class_embedding = TimestepEmbedding(width, emb_dim, act) if options.lowres_channels else None
        self.encoder_hid_proj: nn.Linear | None = None
        self.add_embedding: TextPooling | None = None
        if options.text_dim is None:
            return
        if options.text_proj_dim is not None:
            self.encoder_hid_proj = nn.Linear(options.text_dim, options.text_proj_dim)
        if options.text_pooling != "none":
            as_released = options.text_norm == "group"  # that norm marks the IF family, whose arithmetic is kept
            self.add_embedding = TextPooling(
                options.text_dim, emb_dim, options.text_pooling, options.pool_heads, as_released
            )

    def _levels(self) -> list[Level]:
        """The levels in the order they run."""
        raise TypeError(f"{type(self).__name__} does not say what its levels are")

    def _denoise(self, x: Tensor, emb: Tensor, text: "LevelText") -> Tensor:
        """x (B, C, h, w) after the stem -> (B, C', h, w) before the pixel shuffle."""
        raise TypeError(f"{type(self).__name__} does not say how it denoises")

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
    ) -> Any:
        """The network's only entry point. What it returns depends on what it is given:

        - ``text`` alone (with its mask): the :class:`TextContext`, to be computed once per sample;
        - ``sample, timestep, context``: the denoised output, at each sampling step;
        - ``sample, timestep, text=``: the same in one call, for training;
        - ``sample, timestep``: a network built without text.

        Args:
            sample: (B, in_channels, H, W) noisy image z; H and W divisible by ``divisor``.
            timestep: (B,) or a number in [0, 1000), fractions allowed.
            context: what a call with the text alone returned.
            text: (B, L, text_dim) encoder states.
            text_mask: (B, L), 1 at real tokens; None: all are real. Padding changes nothing.
            lowres: (B, lowres_channels, H, W) low-resolution image, noised and resized to the sample's size.
            aug_timestep: (B,) or a number in [0, 1000): the level of that noise.

        Returns:
            (B, out_channels, H, W) in the sample's dtype, or a TextContext.

        Raises:
            ValueError: sizes, channels or inputs that do not fit the network.
        """
        options = self.options
        if options.text_dim is None and (text is not None or context is not None):
            raise ValueError("this network was built without text (text_dim=None); call it without text and context")
        if text is not None and text.shape[-1] != options.text_dim:
            raise ValueError(f"text has width {text.shape[-1]}, this network expects text_dim {options.text_dim}")
        if sample is None:
            if text is None:
                raise ValueError("forward was given neither sample nor text; give one of them")
            return self._text_context(text, text_mask)
        if timestep is None:
            raise ValueError("sample was given without timestep; give a number in [0, 1000) or one per image")
        if options.text_dim is not None and (text is None) == (context is None):
            raise ValueError("give exactly one of context= and text= (or build the network with text_dim=None)")
        x = self._stem(sample, lowres)
        emb = self._embed_time(self.time_embedding, timestep, x)
        if self.class_embedding is not None:
            if aug_timestep is None:
                raise ValueError("this network has a low-resolution input; give aug_timestep, 0 for a clean one")
            emb = emb + self._embed_time(self.class_embedding, aug_timestep, x)
        pooled, states = None, LevelText()
        if text is not None:
            pooled, states = self._read_text(text, text_mask, sync=False)
        elif context is not None:
            pooled = context.pooled
            states = LevelText(None, tuple(zip(context.keys, context.values, strict=True)), context.mask)
        if pooled is not None:
            emb = emb + pooled.to(emb.dtype)
        out = self._denoise(x, emb, states)
        return F.pixel_shuffle(out, options.patch_size).to(sample.dtype)

    def _text_context(self, text: Tensor, text_mask: Tensor | None) -> TextContext:
        pooled, states = self._read_text(text, text_mask, sync=True)
        pairs = [pair for level in self._levels() for pair in level(None, text=states.states, mask=states.mask)]
        return TextContext(pooled, tuple(k for k, _ in pairs), tuple(v for _, v in pairs), states.mask)

    def _read_text(self, text: Tensor, mask: Tensor | None, sync: bool) -> tuple[Tensor | None, "LevelText"]:
        """Pooled vector, and the states that attention layers project. ``sync``: the mask's values may be looked at."""
        text = text.to(self._compute_dtype())
        if mask is not None:
            if mask.shape != text.shape[:2]:
                raise ValueError(f"text_mask has shape {tuple(mask.shape)}, text {tuple(text.shape)}; expected (B, L) of it")
            text, mask = trim(text, mask.bool(), sync)
        pooled = None if self.add_embedding is None else self.add_embedding(text, mask)
        states = text if self.encoder_hid_proj is None else self.encoder_hid_proj(text)
        return pooled, LevelText(states, (), mask)

    def _compute_dtype(self) -> torch.dtype:
        return self.time_embedding.linear_1.weight.dtype

    def _stem(self, sample: Tensor, lowres: Tensor | None) -> Tensor:
        """Checks sizes, concatenates the low-resolution image, folds patches into channels, sets the compute dtype."""
        options = self.options
        height, width = sample.shape[-2:]
        if height % options.divisor or width % options.divisor:
            raise ValueError(
                f"sample is {height}x{width}; height and width must be multiples of {options.divisor} for this network "
                f"(patch_size {options.patch_size} times the strides); pad or resize it"
            )
        if sample.shape[1] != options.in_channels:
            raise ValueError(f"sample has {sample.shape[1]} channels, this network expects {options.in_channels}")
        given = None if lowres is None else (lowres.shape[1], *lowres.shape[-2:])
        wanted = (options.lowres_channels, height, width) if options.lowres_channels else None
        if given != wanted:
            raise ValueError(f"lowres has (C, H, W) {given}, this network expects {wanted}")
        x = sample if lowres is None else torch.cat([sample, lowres.to(sample.dtype)], dim=1)
        return F.pixel_unshuffle(x.to(self._compute_dtype()), options.patch_size)

    def _embed_time(self, embedding: nn.Module, timestep: Tensor | float, x: Tensor) -> Tensor:
        steps = torch.as_tensor(timestep, device=x.device)
        if steps.ndim > 1 or (steps.ndim == 1 and len(steps) not in (1, len(x))):
            raise ValueError(f"timestep has shape {tuple(steps.shape)}; expected a number or one per image, ({len(x)},)")
        steps = steps.expand(len(x))
        if self.options.time_input == "cosine_log_snr":
            steps = cosine_log_snr_coordinate(steps)
        out: Tensor = embedding(sinusoids(steps, self.options.sinusoid_dim).to(x.dtype))
        return out

    def _run(self, level: Level, x: Tensor, emb: Tensor, skips: tuple[Tensor, ...], text: "LevelText") -> Any:
        """Runs one level, checkpointed where ``enable_gradient_checkpointing`` asked for it."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(level, x, emb, skips, *text)
        return level(x, emb, skips, *text)
