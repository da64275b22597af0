"""What both networks are conditioned on: time, text, and the augmentation level."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import activation


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


def steps_of(timestep: Tensor | float, x: Tensor) -> Tensor:
    """(B,) for x (B, ...), of one timestep for each or one number for all, which no compiled graph keeps as a constant.

    Raises:
        ValueError: another number of them.
    """
    if type(timestep) in (int, float):
        # Only sums and products with tensors keep a float open in torch.compile: torch.as_tensor and torch.full make
        # it a constant, and a graph is compiled for each new one until, after eight, none is any more.
        timestep = torch.zeros((), device=x.device) + timestep
    # not len(x), which is a constant in an exported graph
    steps, batch = torch.as_tensor(timestep, device=x.device), x.shape[0]
    if steps.ndim > 1 or (steps.ndim == 1 and steps.shape[0] not in (1, batch)):
        raise ValueError(f"timestep has shape {tuple(steps.shape)}; give a number, or one per image ({batch},)")
    return steps.expand(batch)


def sinusoids(timestep: Tensor, dim: int) -> Tensor:
    """cos, then sin, of timestep (B,) at dim/2 geometric frequencies from 1 to 1/10000: (B, dim) float32 (DDPM)."""
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep[:, None].float() * torch.exp(exponent)[None, :]
    return F.pad(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1), (0, dim - 2 * half))


class AttentionPooling(nn.Module):
    """One query, the mean token plus a learned vector, attends to itself and all tokens (as DeepFloyd IF pools).

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
        weight = torch.softmax(logits.float() if self.float32_softmax else logits, dim=-1).to(v.dtype)
        return (weight @ v).transpose(1, 2).reshape(batch, dim)


class TextWhitening(nn.Module):
    """Encoder states made uncorrelated, with mean 0 and variance 1: an affine map that is fitted once and not trained.

    A T5's states lie mostly along a few directions (in the shapes demo's, variances span four powers of ten), and what
    tells two captions of the same words apart lies across them: projections that start at random hardly see it, and
    learn it last. Ours; the identity until :meth:`fit` is called.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))

    @torch.no_grad()
    def fit(self, count: int, mean: Tensor, covariance: Tensor, ridge: float = 0.01) -> None:
        """The symmetric (ZCA) map for tokens of this mean (D,) and covariance (D, D), of which ``count`` were seen.

        ``ridge`` times the mean variance is added to each direction's, so that those that hold nothing stay small.
        Raises ValueError for fewer tokens than twice the width, or numbers that are not finite.
        """
        if count < 2 * len(mean):
            raise ValueError(
                f"{count} tokens of width {len(mean)} were given, and it takes two a channel, {2 * len(mean)}"
            )
        if not bool(covariance.isfinite().all()):
            raise ValueError(f"the {count} tokens are not finite numbers")
        variances, directions = torch.linalg.eigh(covariance.to("cpu", torch.float64))
        scale = (variances + ridge * variances.mean()).rsqrt()
        self.mean.copy_(mean)
        self.matrix.copy_(directions @ (scale[:, None] * directions.T))

    def forward(self, text: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D). In float32 at least: weak directions lie below the rounding of half precision."""
        wide = torch.promote_types(text.dtype, torch.float32)
        with torch.autocast(text.device.type, enabled=False):
            return ((text - self.mean.to(wide)) @ self.matrix.to(wide)).to(text.dtype)


def masked_mean(text: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens: (B, L, D) -> (B, D)."""
    if mask is None:
        return text.mean(dim=1)
    weight = mask[:, :, None].to(text.dtype)
    return (text * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class TextPooling(nn.Module):
    """Layer norm, pooling, linear to the time embedding's width, layer norm (2.5 asks for norms in the pooling).

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


def trim(text: Tensor, mask: Tensor, sync: bool) -> tuple[Tensor, Tensor | None]:
    """Cuts columns that are padding in every row, and drops a mask that is all True (attention is then faster).

    Looking at a mask's values waits for the GPU and breaks a compiled graph: only where ``sync`` says so, or on CPU.
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
