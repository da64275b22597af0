"""What text does to the networks: masks, padding, the context, independence of the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch.utils import _pytree as pytree

from tests.unets.helpers import BASE, KINDS, draw, image_inputs, make
from unets import BaseUNet, TextContext
from unets.attention import Attention
from unets.conditioning import AttentionPooling, TextPooling, TextWhitening, trim
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


def correlated_tokens(count: int, dim: int) -> torch.Tensor:
    """Tokens whose variances span five powers of ten, around a mean far from zero."""
    mixing = draw(20, dim, dim) * torch.logspace(0, -2.5, dim, dtype=torch.float64)[:, None]
    return draw(21, count, dim) @ mixing + 3 * draw(22, dim)


def whitened(dim: int, ridge: float) -> tuple[TextWhitening, torch.Tensor]:
    tokens, whitening = correlated_tokens(400, dim), TextWhitening(dim).double()
    whitening.fit(len(tokens), tokens.mean(0), torch.cov(tokens.T, correction=0), ridge)
    return whitening, tokens


def test_whitened_tokens_are_uncorrelated() -> None:
    whitening, tokens = whitened(12, ridge=0.0)
    white = whitening(tokens[None])[0]
    assert white.mean(0).abs().max() < 1e-9
    assert (torch.cov(white.T, correction=0) - torch.eye(12)).abs().max() < 1e-6
    assert (whitening.matrix - whitening.matrix.T).abs().max() < 1e-9  # of all such maps the one that turns nothing


def test_the_ridge_keeps_empty_directions_small() -> None:
    tokens, whitening = draw(23, 100, 6), TextWhitening(6).double()
    tokens[:, 5] = 0
    whitening.fit(100, tokens.mean(0), torch.cov(tokens.T, correction=0), ridge=0.01)
    mean_variance = torch.cov(tokens.T, correction=0).diagonal().mean()
    assert whitening.matrix[5, 5].item() == pytest.approx((0.01 * mean_variance.item()) ** -0.5)


def test_whitening_keeps_weak_directions_in_half_precision() -> None:
    whitening, tokens = whitened(12, ridge=0.0)
    exact, narrow = whitening(tokens[None]), whitening.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert (narrow(tokens[None].float()) - exact).abs().max() < 1e-2  # bfloat16 is off by more than 1 here


def test_the_ridge_is_a_hundredth_of_the_mean_variance_unless_told_otherwise() -> None:
    found, told = TextWhitening(4), TextWhitening(4)
    variances = torch.tensor([4.0, 1.0, 0.25, 0.0])
    found.fit(8, torch.ones(4), torch.diag(variances))
    told.fit(8, torch.ones(4), torch.diag(variances), ridge=0.01)
    assert torch.equal(found.matrix, told.matrix)
    torch.testing.assert_close(found.matrix, torch.diag((variances + 0.01 * variances.mean()).rsqrt()))


def test_whitening_is_fitted_in_double_precision_whatever_it_is_given() -> None:
    """Of directions that are turned against each other float32 loses the weakest, a 1e8th of the strongest."""
    turn = torch.linalg.qr(draw(24, 6, 6))[0]
    strong = turn @ torch.diag(torch.logspace(0, -8, 6, dtype=torch.float64)) @ turn.T
    narrow = strong.float()
    narrow = (narrow + narrow.T) / 2
    exact, found = TextWhitening(6).double(), TextWhitening(6).double()
    exact.fit(100, torch.zeros(6), narrow.double(), ridge=1e-6)
    found.fit(100, torch.zeros(6), narrow, ridge=1e-6)
    assert torch.equal(found.matrix, exact.matrix)


def test_whitening_says_what_it_lacks() -> None:
    TextWhitening(6).fit(12, torch.zeros(6), torch.eye(6))
    with pytest.raises(ValueError, match="11 tokens of width 6"):
        TextWhitening(6).fit(11, torch.zeros(6), torch.eye(6))
    with pytest.raises(ValueError, match="finite"):
        TextWhitening(6).fit(99, torch.zeros(6), torch.eye(6).index_fill(1, torch.tensor(5), torch.inf))
    with pytest.raises(ValueError, match="finite"):
        TextWhitening(6).fit(99, torch.zeros(6), torch.full((6, 6), torch.nan))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_reads_its_text_whitened(kind: str, tmp_path: Path) -> None:
    unet, plain = make(kind, text_whitening=True), make(kind)
    given, text = image_inputs(unet), draw(3, 2, 5, 24)
    assert torch.equal(unet(**given, text=text), plain(**given, text=text))  # until it is fitted
    tokens = correlated_tokens(100, 24)
    unet.whitening.fit(100, tokens.mean(0), torch.cov(tokens.T))
    expected = plain(**given, text=unet.whitening(text))  # pooling and attention both
    assert torch.equal(unet(**given, text=text), expected)
    assert torch.equal(unet(**given, context=unet(text=text)), expected)
    unet.save_pretrained(tmp_path)
    loaded = type(unet).from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert torch.equal(loaded.whitening.matrix, unet.whitening.matrix)
    assert "whitening.matrix" not in plain.state_dict()


def test_whitening_of_narrow_text_is_that_of_its_exact_values() -> None:
    """Text that comes in bfloat16 is whitened in float32: only what comes out is rounded, to three digits."""
    whitening, tokens = whitened(12, ridge=0.0)
    whitening, text = whitening.float(), (tokens + 3).bfloat16()[None]
    mean, matrix = (value.double() for value in (whitening.mean, whitening.matrix))
    exact = (text.double() - mean) @ matrix
    made = whitening(text)
    assert made.dtype == torch.bfloat16
    assert ((made.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-2).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whitening(text), made)
    rounded = ((text - whitening.mean.bfloat16()) @ whitening.matrix.bfloat16()).double()
    assert (rounded - exact).abs().max() > 0.5, "numbers that could show no mistake"
