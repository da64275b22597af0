"""The transformer: its parts in order against plain formulas, and what it promises beside the contract's own tests."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen.training.config.sections import OptimConfig
from imagen.training.optim.optimizers import make_optimizer
from tests.unets.helpers import DIT, draw, image_inputs, make, redraw, run
from unets import DiT
from unets.count import count
from unets.dit import DiTBlock, positions
from unets.options import Options

SEEDS = torch.tensor([3, 2**62 + 11, 0, 987654321])


def plain_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@torch.no_grad()
def test_a_block_is_the_paper_s() -> None:
    """adaLN-zero, with softmax over the text and then the patches written out."""
    block = DiTBlock(8, 3, Options(head_dim=4, text_dim=6, time_embed_dim=5)).double()
    redraw(block)
    x, emb, states = draw(1, 2, 7, 8), draw(2, 2, 5), draw(3, 2, 3, 6)
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        (emb @ part.T + bias)[:, None]
        for part, bias in zip(block.modulation.weight.split(8), block.modulation.bias.split(8), strict=True)
    )
    attention: Any = block.attentions[0]
    hidden = plain_norm(x) * (1 + scale1) + shift1
    text = F.layer_norm(states, (6,), attention.norm_cross.weight, attention.norm_cross.bias)
    q = attention.to_q(hidden)
    k = torch.cat([attention.add_k_proj(text), attention.to_k(hidden)], 1)
    v = torch.cat([attention.add_v_proj(text), attention.to_v(hidden)], 1)
    heads = [
        torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 2, -1) @ v[..., part]
        for part in (slice(0, 4), slice(4, 8))
    ]
    expected = x + gate1 * attention.to_out[0](torch.cat(heads, -1))
    hidden = block.mlp_in(plain_norm(expected) * (1 + scale2) + shift2)
    hidden = hidden / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    expected = expected + gate2 * block.mlp_out(hidden)
    keys, values = attention(None, states)
    for given in ({"states": states}, {"keys_values": ((keys, values),)}):
        out, made = block(x, emb, (), block_text(**given))
        assert made == ()
        assert torch.allclose(out, expected, rtol=1e-12, atol=1e-12)


def block_text(**given: Any) -> Any:
    from unets.level import LevelText

    return LevelText(**given)


@torch.no_grad()
def test_a_network_is_its_patches_places_and_blocks() -> None:
    """Every patch by itself: with blocks that do nothing no patch sees another."""
    unet = make("dit", lowres_channels=1, out_channels=2, text_dim=None)
    for block in unet.blocks:
        block.modulation.weight.zero_()
        block.modulation.bias.zero_()
    given = image_inputs(unet, size=(4, 6))
    out, emb = unet(**given), []
    unet.modulation_out.register_forward_hook(lambda _, seen, made: emb.append(made))
    assert torch.equal(unet(**given), out)
    shift, scale = emb[0].split(16, 1)
    pictures = torch.cat([given["sample"], given["lowres"]], 1)
    places = positions(2, 3, 16, torch.device("cpu"))
    for row in range(2):
        for column in range(3):
            window = (slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
            token = unet.proj_in(pictures[:, :, *window].flatten(1)) + places[3 * row + column].double()
            made = unet.proj_out(plain_norm(token) * (1 + scale) + shift)
            assert torch.allclose(out[:, :, *window], made.view(2, 2, 2, 2), rtol=1e-12, atol=1e-12)


def test_positions_are_sines_and_cosines_of_row_and_column() -> None:
    got = positions(3, 5, 8, torch.device("cpu"))
    assert got.shape == (15, 8)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        angles = [(math.cos(n), math.cos(n / 100), math.sin(n), math.sin(n / 100)) for n in (row, column)]
        assert torch.allclose(got[5 * row + column], torch.tensor(angles).flatten(), atol=1e-6)
    assert torch.equal(positions(2, 5, 8, torch.device("cpu")), got[:10])  # a place is the same in any picture


@torch.no_grad()
def test_a_new_block_s_branches_are_closed_by_their_gates_alone() -> None:
    """Two factors of zero in a row would get no gradient: what the gates open onto is there from the start."""
    unet = DiT(**DIT).double()
    x, text = draw(1, 2, 6, 16), draw(2, 2, 3, 24)
    for block in unet.blocks:
        assert block.attentions[0](x, text).abs().max() > 1e-3
        assert block.mlp_out(F.gelu(block.mlp_in(x))).abs().max() > 1e-3


@torch.no_grad()
def test_a_new_network_is_silent_and_its_blocks_do_nothing() -> None:
    unet = DiT(**DIT).double()
    assert run(unet).abs().max() == 0
    x, emb = draw(1, 2, 6, 16), draw(2, 2, 16)
    for block in unet.blocks:
        assert torch.equal(block(x, emb)[0], x)
    skipping = DiT(**DIT, lowres_channels=3, input_skip=True).double()
    assert torch.equal(run(skipping), image_inputs(skipping)["lowres"])


def test_a_new_network_learns_in_all_its_parts() -> None:
    """Nothing starts between two zeros, where no gradient would ever reach it."""
    torch.manual_seed(0)
    unet = DiT(**DIT).double().train()
    optimizer = torch.optim.Adam(unet.parameters(), 1e-2)
    before = {name: p.detach().clone() for name, p in unet.named_parameters()}
    for _ in range(4):
        optimizer.zero_grad()
        (run(unet) - 1).square().mean().backward()
        optimizer.step()
    still = [name for name, p in unet.named_parameters() if torch.equal(p, before[name])]
    assert [name for name in still if not name.endswith("pool.k_proj.bias")] == []


@torch.no_grad()
def test_a_low_resolution_image_and_its_level_act() -> None:
    unet = make("dit", lowres_channels=3)
    base = run(unet)
    for change in ({"lowres": draw(9, 2, 3, 8, 8)}, {"aug_timestep": 700}, {"timestep": 700}):
        assert (run(unet, **change) - base).abs().max() > 1e-3


def gradients(unet: Any, rows: slice) -> list[Tensor]:
    given = {key: value[rows] for key, value in image_inputs(unet, batch=4).items()}
    unet.zero_grad()
    unet(**given, text=draw(3, 4, 3, 24)[rows], dropout_seeds=SEEDS[rows]).square().sum().backward()
    return [p.grad.clone() for p in unet.parameters()]


def test_dropout_is_a_function_of_the_seeds_under_checkpointing_too() -> None:
    unet = make("dit", dropout=0.3).train()
    whole = gradients(unet, slice(None))
    for total, one, other in zip(whole, gradients(unet, slice(1)), gradients(unet, slice(1, 4)), strict=True):
        assert torch.allclose(one + other, total, rtol=1e-8, atol=1e-10)
    calls = [0, 0]
    unet.checkpoint_levels([1])
    for number, block in enumerate(unet.blocks):

        def note(*_: Any, number: int = number) -> None:
            calls[number] += 1

        block.register_forward_pre_hook(note)
    assert all(torch.equal(a, b) for a, b in zip(gradients(unet, slice(None)), whole, strict=True))
    assert calls == [1, 2]
    assert not torch.equal(run(unet, dropout_seeds=SEEDS[:2]), run(unet, dropout_seeds=SEEDS[2:]))
    with pytest.raises(ValueError, match=r"levels \[2\] do not exist; this network has levels 0 to 1"):
        unet.checkpoint_levels([2])


def test_its_parameters_are_counted_by_part() -> None:
    with torch.device("meta"):
        parts = count(DiT(text_dim=None))
        with_text = count(DiT(text_dim=100, text_pooling="none"))
    width, depth = 384, 12
    assert parts["attention"] == depth * 4 * (width**2 + width)
    assert parts["text projections"] == parts["text pooling"] == 0
    assert with_text["text projections"] == depth * (2 * (100 * width + width) + 200)
    assert with_text["total"] - parts["total"] == with_text["text projections"]
    # DiT-S has 33 M (Peebles & Xie, Table 1): blocks of 18 widths squared, and the embeddings
    assert parts["total"] == pytest.approx(33e6, rel=0.02)


def test_muon_trains_the_blocks_and_not_the_ends() -> None:
    unet = DiT(**DIT)
    muon, *_ = make_optimizer(unet, OptimConfig(muon_lr=0.1), unet.end_layers).param_groups
    names = {id(p): name for name, p in unet.named_parameters()}
    chosen = {names[id(p)] for p in muon["params"]}
    assert {name for name, p in unet.named_parameters() if p.ndim >= 2} - chosen == {
        "proj_in.weight",
        "proj_out.weight",
    }


def test_attention_can_be_switched_by_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, switched = make("dit"), []
    monkeypatch.setattr(
        "unets.attention.TokenAttention.set_use_memory_efficient_attention_xformers",
        lambda self, valid, op=None: switched.append(self),
    )
    unet.enable_xformers_memory_efficient_attention()
    assert switched == [block.attentions[0] for block in unet.blocks]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 18}, "width 18 is no multiple of 4"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"mlp_ratio": 0}, "mlp_ratio must be at least 1, got 0"),
        ({"head_dim": 5}, "head_dim 5 does not divide the attention width 16"),
        ({"input_skip": True, "out_channels": 6}, "the 3 channels of the input .* to the 6 of the output"),
        ({"text_pooling": "max"}, "text_pooling must be one of"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(**{**DIT, **change})
