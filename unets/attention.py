"""Attention over image positions and text tokens (Imagen, App. D.3.1).

Two layouts, both of the paper: text keys and values concatenated to those of a self-attention layer (base, 64 -> 256),
and attention to the text alone (256 -> 1024). Parameter names are those of diffusers' ``Attention`` with added keys and
values, so the checkpoints of that family load by name.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from diffusers.utils.import_utils import is_xformers_available
from torch import Tensor, nn

from .level import KeysValues
from .norms import GroupNorm
from .options import Options
from .regions import Region

TEXT_NORM_GROUPS = 32  # groups of the text norm in the DeepFloyd IF family, whatever the image norms use


class TokenLayerNorm(nn.LayerNorm):
    """Layer norm of each token by itself (the paper's, 2.5); a mask changes nothing."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, L, D), mask (B, L) bool or None; returns (B, L, D)."""
        return super().forward(x)


class TokenGroupNorm(nn.GroupNorm):
    """Group norm of a token sequence whose statistics run over the real tokens (the text norm of DeepFloyd IF).

    Statistics mix the tokens, so padding must be left out of them: without a mask this is ``nn.GroupNorm`` over (C, L).
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, L, D), mask (B, L) bool or None; returns (B, L, D)."""
        if mask is None:
            # not F.group_norm, which refuses a single token where a group is one channel and the batch is one
            normed = torch.group_norm(x.transpose(1, 2), self.num_groups, self.weight, self.bias, self.eps)
            return normed.transpose(1, 2)
        batch, length, dim = x.shape
        grouped = x.view(batch, length, self.num_groups, dim // self.num_groups)
        weight = mask[:, :, None, None].to(x.dtype)
        count = (weight.sum(dim=(1, 3), keepdim=True) * grouped.shape[-1]).clamp(min=1)
        mean = (grouped * weight).sum(dim=(1, 3), keepdim=True) / count
        variance = ((grouped - mean).square() * weight).sum(dim=(1, 3), keepdim=True) / count
        centred = ((grouped - mean) * torch.rsqrt(variance + self.eps)).reshape(batch, length, dim)
        return centred * self.weight + self.bias


M = TypeVar("M", nn.Conv2d, nn.Linear)


def zero_init(module: M) -> M:
    """Sets a convolution or a linear map to zero, so that the branch it ends starts as nothing (ADM)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def text_norm(kind: str, dim: int) -> TokenLayerNorm | TokenGroupNorm:
    """The norm on text tokens in front of their key and value projections: "layer" (paper, 2.5) or "group" (IF)."""
    if kind == "layer":
        return TokenLayerNorm(dim)
    if dim % TEXT_NORM_GROUPS:
        raise ValueError(f'text_norm "group" needs a text width divisible by {TEXT_NORM_GROUPS}, got {dim}')
    return TokenGroupNorm(TEXT_NORM_GROUPS, dim)


class TokenAttention(Region):
    """Multi-head attention over tokens: they ask, they and the text answer, the text in front.

    Args:
        channels: C of the tokens.
        options: of the network: width of a head, which must divide ``inner_dim``, width and norm of the text states.
            With ``qk_norm`` queries and keys are divided by their root mean square, head by head, so that no logit can
            outgrow sqrt(head_dim) times what the learned gains make of it (Henry et al. 2020).
        inner_dim: width of queries, keys and values (None: ``channels``).
        self_attention: False leaves the tokens' own keys and values out (text-only cross-attention).
    """

    image: ClassVar[bool] = False  # whether the tokens are the positions of a feature map

    def __init__(
        self, channels: int, options: Options, *, inner_dim: int | None = None, self_attention: bool = True
    ) -> None:
        super().__init__()
        head_dim, text_dim, qk_norm = options.head_dim, options.states_dim, options.qk_norm
        inner = channels if inner_dim is None else inner_dim
        if inner % head_dim:
            raise ValueError(f"head_dim {head_dim} does not divide the attention width {inner}; choose a divisor")
        if not self_attention and text_dim is None:
            raise ValueError('attention to text alone needs text: set text_dim, or attention to "self"')
        self.heads = inner // head_dim
        if self.image:  # first: optimizers know weights by their order
            self.group_norm = GroupNorm(options.norm_groups, channels)
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner) if self_attention else None
        self.to_v = nn.Linear(channels, inner) if self_attention else None
        self.norm_cross = None if text_dim is None else text_norm(options.text_norm, text_dim)
        self.add_k_proj = None if text_dim is None else nn.Linear(text_dim, inner)
        self.add_v_proj = None if text_dim is None else nn.Linear(text_dim, inner)
        self.norm_q = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else None
        self.norm_k = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm and self_attention else None
        self.norm_added_k = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm and text_dim is not None else None
        out = nn.Linear(inner, channels)
        self.to_out = nn.ModuleList([zero_init(out) if self.image else out])
        self._attend: Callable[..., Tensor] = attend

    def forward(
        self, x: Tensor | None, text: Tensor | None = None, kv: KeysValues | None = None, mask: Tensor | None = None
    ) -> Tensor | KeysValues | None:
        """x (B, N, C) -> (B, N, C); with x None, text (B, L, D) -> its keys and values, each (B, L, inner).

        ``kv`` are keys and values computed before; without them they are computed from ``text``.
        mask (B, L) bool marks the real tokens (None: all are).
        """
        if kv is None and text is not None:
            kv = self._project(text, mask)
        return kv if x is None else self._answer(x, kv, mask)

    def _answer(self, hidden: Tensor, kv: KeysValues | None, mask: Tensor | None) -> Tensor:
        query = normed(self.norm_q, self.to_q(hidden))
        if self.to_k is None or self.to_v is None:
            assert kv is not None, "cross-attention was called without text"
            key, value = kv
        elif kv is None:
            key, value, mask = normed(self.norm_k, self.to_k(hidden)), self.to_v(hidden), None
        else:
            key = torch.cat([kv[0], normed(self.norm_k, self.to_k(hidden))], dim=1)
            value = torch.cat([kv[1], self.to_v(hidden)], dim=1)
            if mask is not None:
                mask = F.pad(mask, (0, hidden.shape[1]), value=True)
        out: Tensor = self.to_out[0](self._attend(query, key, value, self.heads, mask))
        return out

    def _project(self, text: Tensor, mask: Tensor | None) -> KeysValues:
        assert self.norm_cross is not None
        assert self.add_k_proj is not None
        assert self.add_v_proj is not None
        text = self.norm_cross(text, mask)
        return normed(self.norm_added_k, self.add_k_proj(text)), self.add_v_proj(text)

    def set_backend(self, backend: str | None) -> None:
        """One of diffusers' attention backends by name; None: the one that is active when it is called."""
        self._attend = attend if backend is None else functools.partial(attend, backend=backend)

    def set_use_memory_efficient_attention_xformers(
        self, valid: bool, attention_op: Callable[..., Any] | None = None
    ) -> None:
        """What diffusers' ``enable_xformers_memory_efficient_attention`` calls on each attention layer.

        Raises ModuleNotFoundError without xformers and ValueError without a CUDA device, as diffusers does.
        """
        if not valid:
            self._attend = attend
            return
        if not is_xformers_available():
            raise ModuleNotFoundError(
                "Refer to https://github.com/facebookresearch/xformers for more information on how to install xformers",
                name="xformers",
            )
        if not torch.cuda.is_available():
            raise ValueError("xformers' memory efficient attention needs a CUDA device; none is available")
        self._attend = functools.partial(xformers_attention, op=attention_op)


class Attention(TokenAttention):
    """The same over the positions of a feature map, behind a group norm and with a residual connection that starts as
    the identity (ADM).
    """

    image = True

    def _answer(self, x: Tensor, kv: KeysValues | None, mask: Tensor | None) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        batch, channels, height, width = x.shape
        hidden = self.group_norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        out = super()._answer(hidden, kv, mask)
        return x + out.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def normed(norm: nn.RMSNorm | None, x: Tensor) -> Tensor:
    """x (B, S, heads*d) with every head's d numbers normed in the dtype of the norm's weights; without one as it is."""
    if norm is None:
        return x
    heads = x.unflatten(-1, (-1, *norm.normalized_shape))
    return norm(heads.to(norm.weight.dtype)).flatten(-2).to(x.dtype)  # autocast leaves rms_norm's dtypes as they come


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None, backend: str | None = None
) -> Tensor:
    """The same function as :func:`sdpa` by one of diffusers' attention backends; None: by the one that is active.

    Raises:
        ValueError: the backend does not take the mask, the dtype or the device.
    """
    # here, for diffusers imports every attention package that is installed
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    if backend is None:
        backend, _ = Registry.get_active_backend()
    if backend == "native":
        return sdpa(query, key, value, heads, mask)
    if backend == "xformers":  # diffusers' adds a mask of True and False to the logits
        return xformers_attention(query, key, value, heads, mask)
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    q, k, v = (t.unflatten(-1, (heads, -1)) for t in (query, key, value))
    given = {"query": q, "key": k, "value": v, "attn_mask": None if mask is None else mask[:, None, None, :]}
    try:
        for check in Registry._constraints[backend]:
            check(**given, is_causal=False)
        out: Tensor = dispatch_attention_fn(**given, backend=backend)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, NotImplementedError) as error:
        masked = "without a mask" if mask is None else "with a mask over the text's padding"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"attention backend {str.__str__(backend)!r} cannot attend to {query.dtype} on {query.device.type} "
            f'{masked}: {reason}; choose another, such as set_attention_backend("native")'
        ) from error
    return out.flatten(-2)


def sdpa(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v per head: q (B, N, heads*d), k and v (B, S, heads*d), mask (B, S) bool -> as q."""
    batch, positions, inner = query.shape
    q, k, v = (t.view(batch, t.shape[1], heads, inner // heads).transpose(1, 2) for t in (query, key, value))
    # On a CPU torch's gradient of bfloat16 attention takes 7 times as long as float32's at 64 positions, and no less at
    # 4,096 (benchmarks/cpu_attention.py), so training with mixed precision attends in float32 there.
    exact = q.device.type == "cpu" and q.dtype is torch.bfloat16 and torch.is_grad_enabled()
    with torch.autocast("cpu", enabled=False) if exact else contextlib.nullcontext():
        if exact:
            q, k, v = q.float(), k.float(), v.float()
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
    return out.to(query.dtype).transpose(1, 2).reshape(batch, positions, inner)


def xformers_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None, op: Callable[..., Any] | None = None
) -> Tensor:
    """The same function as :func:`sdpa` by ``xformers.ops.memory_efficient_attention``."""
    import xformers.ops

    batch, positions, inner = query.shape
    split = [t.view(batch, t.shape[1], heads, inner // heads) for t in (query, key, value)]
    bias = None
    if mask is not None:
        length = mask.shape[1]
        padded = math.ceil(length / 8) * 8  # xformers wants rows of the bias aligned to 8 elements
        bias = query.new_zeros(batch, 1, 1, padded)
        bias[:, 0, 0, :length].masked_fill_(~mask, float("-inf"))
        bias = bias.expand(batch, heads, positions, padded)[..., :length]
    out: Tensor = xformers.ops.memory_efficient_attention(*split, attn_bias=bias, op=op)
    return out.reshape(batch, positions, inner)
