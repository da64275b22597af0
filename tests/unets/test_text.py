"""What text does to the networks: masks, padding, the context, independence of the batch."""

from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch.utils import _pytree as pytree

from tests.unets.helpers import BASE, KINDS, draw, image_inputs, make
from unets import BaseUNet, TextContext
from unets.attention import Attention
from unets.conditioning import AttentionPooling, TextPooling, trim
from unets.options import Options

TOLERANCE = {
    "base": 1e-12,
    "base_group": 1e-6,
    "efficient": 1e-12,
    "efficient_cross": 1e-12,
    "dit": 1e-12,
}  # group: see TextPooling


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_padding_changes_nothing(kind: str, pooling: str) -> None:
    unet = make(kind, text_pooling=pooling)
    given = image_inputs(unet)
    text = draw(3, 2, 5, 24)
    lengths = torch.tensor([5, 2])
    alone = [
        unet(
            **{k: v[i : i + 1] for k, v in given.items()},
            text=text[i : i + 1, : lengths[i]],
        )
        for i in range(2)
    ]
    for width, filling in ((5, 0.0), (9, 100.0)):
        padded = torch.full((2, width, 24), filling, dtype=torch.float64)
        mask = torch.arange(width) < lengths[:, None]
        for i in range(2):
            padded[i, : lengths[i]] = text[i, : lengths[i]]
        got = unet(**given, text=padded, text_mask=mask.long())
        assert relative(got, torch.cat(alone)) <= TOLERANCE[kind]
        by_context = unet(**given, context=unet(text=padded, text_mask=mask))
        assert relative(by_context, torch.cat(alone)) <= TOLERANCE[kind]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_with_a_hole_equals_the_text_without_it(kind: str) -> None:
    """Nothing but trailing padding can be trimmed, so this goes through the masks of attention, norm and pooling."""
    unet = make(kind)
    given = image_inputs(unet)
    text, mask = draw(4, 2, 5, 24), torch.tensor([[1, 0, 1, 0, 1]] * 2)
    got = unet(**given, text=text, text_mask=mask)
    assert relative(got, unet(**given, text=text[:, ::2])) <= TOLERANCE[kind]
    assert relative(got, unet(**given, text=text)) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_context_gives_what_one_call_gives(kind: str) -> None:
    unet = make(kind)
    given = image_inputs(unet, batch=3)
    text, mask = draw(5, 3, 4, 24), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    once = unet(**given, text=text, text_mask=mask)
    context = unet(text=text, text_mask=mask)
    assert isinstance(context, TextContext)
    assert torch.equal(unet(**given, context=context), once)
    order = torch.tensor([2, 0, 2])
    picked = {key: value[order] for key, value in given.items()}
    assert relative(unet(**picked, context=context.select(order)), once[order]) <= TOLERANCE[kind]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_text_reaches_the_output_by_attention_and_by_pooling(kind: str) -> None:
    unet = make(kind)
    given = image_inputs(unet)
    texts = draw(6, 2, 3, 24), draw(7, 2, 3, 24)
    contexts = [unet(text=text) for text in texts]
    base = unet(**given, context=contexts[0])
    by_attention = contexts[1]._replace(pooled=contexts[0].pooled)
    by_pooling = contexts[0]._replace(pooled=contexts[1].pooled)
    for changed in (by_attention, by_pooling):
        assert relative(unet(**given, context=changed), base) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_does_not_depend_on_its_batch(kind: str) -> None:
    unet = make(kind)
    given = image_inputs(unet, batch=3)
    text, mask = draw(8, 3, 4, 24), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    together = unet(**given, text=text, text_mask=mask)
    for i in range(3):
        one = {key: value[i : i + 1] for key, value in given.items()}
        alone = unet(**one, text=text[i : i + 1], text_mask=mask[i : i + 1])
        assert relative(together[i : i + 1], alone) <= TOLERANCE[kind]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["base", "efficient", "dit"])
def test_a_context_without_pooling_or_padding_is_selected_and_checked_like_any_other(kind: str) -> None:
    unet = make(kind, text_pooling="none")
    given, context = image_inputs(unet), unet(text=draw(5, 3, 4, 24))
    assert context.pooled is None
    assert context.mask is None
    order = torch.tensor([2, 0])
    got = unet(**given, context=context.select(order))
    assert relative(got, unet(**given, text=draw(5, 3, 4, 24)[order])) <= TOLERANCE[kind]
    assert relative(got, unet(**given, context=context.select(order.flip(0)))) > 1e-4
    with pytest.raises(ValueError, match="context has batch size 3, sample 2; give one row for each picture"):
        unet(**given, context=context)


def test_full_masks_are_dropped_and_common_padding_is_cut() -> None:
    text = draw(9, 2, 4, 6)
    cut, mask = trim(text, torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]]).bool(), sync=False)
    assert torch.equal(cut, text[:, :2])
    assert mask is None
    cut, mask = trim(text, torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0]]).bool(), sync=True)
    assert torch.equal(cut, text[:, :3])
    assert mask is not None
    assert mask.tolist() == [[True, True, True], [False, True, False]]
    cut, mask = trim(text, torch.tensor([[0, 1, 0, 0], [1, 1, 1, 0]]).bool(), sync=True)  # the longest is not the first
    assert torch.equal(cut, text[:, :3])
    assert mask is not None
    assert mask.tolist() == [[False, True, False], [True, True, True]]


@torch.no_grad()
def test_of_texts_without_any_real_token_one_is_left() -> None:
    """The first, which nothing sees: a text has at least one."""
    text, none = draw(9, 2, 4, 6), torch.zeros(2, 4, dtype=torch.bool)
    cut, mask = trim(text, none, sync=True)
    assert torch.equal(cut, text[:, :1])
    assert mask is not None
    assert mask.tolist() == [[False], [False]]
    unet = make("base")
    assert unet(**image_inputs(unet), text=draw(10, 2, 3, 24), text_mask=torch.zeros(2, 3)).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_any_real_token_is_finite(kind: str) -> None:
    unet = make(kind)
    given = image_inputs(unet)
    out = unet(**given, text=draw(10, 2, 3, 24), text_mask=torch.tensor([[1, 1, 0], [0, 0, 0]]))
    assert out.isfinite().all()


@torch.no_grad()
def test_attention_is_softmax_over_text_then_image() -> None:
    layer = Attention(8, Options(head_dim=4, text_dim=6, norm_groups=2)).double()
    for p in layer.parameters():
        p.copy_(draw(p.numel(), *p.shape) * 0.5)
    x, text, mask = draw(11, 2, 8, 3, 3), draw(12, 2, 4, 6), torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    h = torch.nn.functional.group_norm(x, 2, layer.group_norm.weight, layer.group_norm.bias).flatten(2).transpose(1, 2)
    t = layer.norm_cross(text)
    q = layer.to_q(h)
    k = torch.cat([layer.add_k_proj(t), layer.to_k(h)], 1)
    v = torch.cat([layer.add_v_proj(t), layer.to_v(h)], 1)
    seen = torch.cat([mask, torch.ones(2, 9, dtype=torch.bool)], 1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        logits = q[..., part] @ k[..., part].transpose(1, 2) / 2.0
        weights = logits.exp() * seen[:, None]
        heads.append(weights / weights.sum(-1, keepdim=True) @ v[..., part])
    expected = x + layer.to_out[0](torch.cat(heads, -1)).transpose(1, 2).reshape(x.shape)
    assert relative(layer(x, text, None, mask), expected) < 1e-13


@torch.no_grad()
def test_attention_pooling_is_what_it_says() -> None:
    pool = AttentionPooling(6, 2, float32_softmax=False).double()
    for p in pool.parameters():
        p.copy_(draw(p.numel(), *p.shape))
    text, mask = draw(13, 1, 4, 6), torch.tensor([[1, 1, 0, 1]]).bool()
    real = text[:, [0, 1, 3]]
    query = real.mean(1) + pool.positional_embedding
    tokens = torch.cat([query[:, None], real], 1)[0]
    q, k, v = pool.q_proj(query)[0], pool.k_proj(tokens), pool.v_proj(tokens)
    expected = torch.cat([torch.softmax(k[:, s] @ q[s] / 3**0.5, 0) @ v[:, s] for s in (slice(0, 3), slice(3, 6))])
    assert relative(pool(text, mask)[0], expected) < 1e-13


@torch.no_grad()
def test_a_softmax_in_float32_rounds_the_weights_of_a_wide_network() -> None:
    narrow, wide = (AttentionPooling(6, 2, float32_softmax=told).double() for told in (True, False))
    narrow.load_state_dict(wide.state_dict())
    text = draw(13, 2, 4, 6)
    assert 1e-10 < relative(narrow(text), wide(text)) < 1e-6
    assert narrow(text).dtype == torch.float64


def test_what_the_pooling_s_query_learns_starts_as_long_as_one() -> None:
    torch.manual_seed(0)
    lengths = [AttentionPooling(256, 4, False).positional_embedding.norm().item() for _ in range(3)]
    assert all(0.8 < length < 1.2 for length in lengths)  # of 256 draws it is 1 with a deviation of 1 / sqrt(512)


def test_pooling_of_one_token_and_heads() -> None:
    for dim, heads in ((4096, 64), (192, 3), (24, 3)):
        with torch.device("meta"):
            pooling = TextPooling(dim, 8, "attention", None, False)
        assert pooling.pool is not None
        assert pooling.pool.heads == heads


@torch.no_grad()
def test_a_context_passes_through_device_moves_and_pytrees() -> None:
    unet = make("base")
    context = unet(text=draw(14, 2, 3, 24), text_mask=torch.tensor([[1, 1, 1], [1, 0, 0]]))
    moved = send_to_device(context, "meta")
    assert isinstance(moved, TextContext)
    assert moved.mask is not None
    leaves: list[Any] = pytree.tree_leaves(moved)
    assert len(leaves) == 2 + 2 * len(context.keys)
    assert all(leaf.is_meta for leaf in leaves)


@torch.no_grad()
def test_without_text() -> None:
    for kind in ("base", "efficient"):
        unet = make(kind, text_dim=None)
        given = image_inputs(unet)
        assert unet(**given).shape == (2, 3, 8, 8)
        assert not any("add_" in name for name, _ in unet.named_parameters())
        with pytest.raises(ValueError, match="text_dim=None"):
            unet(**given, text=draw(0, 2, 3, 24))
        with pytest.raises(ValueError, match="text_dim=None"):
            unet(**given, context=make(kind)(text=draw(0, 2, 3, 24)))
    with pytest.raises(ValueError, match="attention to text alone needs text"):
        make("efficient_cross", text_dim=None)


def test_wrong_text_is_refused() -> None:
    unet = BaseUNet(**BASE)
    given = {"sample": torch.zeros(1, 3, 8, 8), "timestep": 1}
    text = torch.zeros(1, 3, 24)
    with pytest.raises(ValueError, match=r"text has shape \(1, 3, 5\); give \(B, L, 24\)"):
        unet(text=torch.zeros(1, 3, 5))
    for shape in ((1, 0, 24), (3, 24), (1, 1, 3, 24)):  # no token at all would give NaN
        for inputs in ({}, given):
            with pytest.raises(ValueError, match=r"text has shape .*; give \(B, L, 24\), L at least 1"):
                unet(**inputs, text=torch.zeros(shape))
    with pytest.raises(ValueError, match="neither sample nor text"):
        unet()
    with pytest.raises(ValueError, match="exactly one"):
        unet(**given)
    with pytest.raises(ValueError, match="exactly one"):
        unet(**given, text=text, context=unet(text=text))
    for shape in ((1, 4), (2, 3), (3,), (1, 3, 24)):
        with pytest.raises(ValueError, match=r"text_mask has shape .*; give a mask of the text's first two axes"):
            unet(**given, text=text, text_mask=torch.ones(shape))
