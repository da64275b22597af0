"""Shapes, gradients, initialisation, saving and the blocks of both networks."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.unets.helpers import BASE, EFFICIENT, KINDS, UNETS, draw, image_inputs, make, run
from unets import BaseUNet, EfficientUNet
from unets.blocks import ResnetBlock
from unets.conditioning import cosine_log_snr_coordinate, sinusoids
from unets.options import Options


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("channels", [1, 5])
def test_any_size_the_strides_divide_and_any_channels(kind: str, patch: int, channels: int) -> None:
    unet = make(kind, patch_size=patch, in_channels=channels, out_channels=channels + 1)
    step = patch * {"base": 2, "effi": 4, "dit": 1}[kind[:4]]
    for size in ((step, 3 * step), (2 * step, step)):
        given = image_inputs(unet, size=size)
        assert unet(**given, text=draw(3, 2, 3, 24)).shape == (2, channels + 1, *size)
    if step > 1:
        for size in ((step, step + 1), (step + 1, step)):
            with pytest.raises(ValueError, match=f"multiples of {step} "):
                unet(**image_inputs(unet, size=size), text=draw(3, 2, 3, 24))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    unet = make(kind).train()
    run(unet).square().mean().backward()
    silent = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # a bias of all keys that a query sees moves all its logits alike, and softmax cancels it
    cancelled = ("pool.k_proj.bias", "add_k_proj.bias") if kind == "efficient_cross" else ("pool.k_proj.bias",)
    assert [name for name in silent if not name.endswith(cancelled)] == []


@pytest.mark.parametrize("kind", UNETS)
def test_checkpointing_gives_the_same_gradients(kind: str) -> None:
    gradients = []
    for on in (False, True):
        unet = make(kind).train()
        if on:
            unet.enable_gradient_checkpointing()
        calls = []
        hook = unet.up_blocks[0].resnets[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        run(unet).square().mean().backward()
        hook.remove()
        assert len(calls) == 1 + on
        gradients.append([p.grad for p in unet.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.allclose(plain, checkpointed, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", UNETS)
def test_a_new_network_is_silent_and_its_blocks_do_nothing(kind: str) -> None:
    cls, arguments = KINDS[kind]
    unet = cls(**arguments).double()
    given = image_inputs(unet)
    assert run(unet).abs().max() == 0
    x, emb = draw(1, 2, 16, 4, 4), draw(2, 2, unet.options.emb_dim)
    assert torch.allclose(unet.down_blocks[0].resnets[0](x, emb), x, atol=1e-6)
    assert given["sample"].shape == (2, 3, 8, 8)
    for module in unet.modules():
        if hasattr(module, "to_out"):
            y = draw(4, 2, module.to_q.in_features, 2, 2)
            assert torch.equal(module(y, draw(5, 2, 3, module.add_k_proj.in_features)), y)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading(kind: str, tmp_path: Path) -> None:
    unet = make(kind).float()
    unet.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = type(unet).from_pretrained(tmp_path)
    for key in KINDS[kind][1]:
        assert (loaded.config[key] == unet.config[key]) or (list(loaded.config[key]) == list(unet.config[key]))
    inputs = {key: value.float() for key, value in image_inputs(unet).items()}
    text = draw(3, 2, 3, 24).float()
    assert torch.equal(loaded(**inputs, text=text), unet(**inputs, text=text))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_inside_sample_dtype_outside(kind: str) -> None:
    unet = make(kind)
    exact = run(unet)
    half = unet.to(torch.bfloat16)
    out = run(half, sample=image_inputs(unet)["sample"].float())
    assert out.dtype == torch.float32
    assert (out - exact).abs().max() < 0.1 * exact.abs().max()


@torch.no_grad()
def test_low_resolution_image_and_its_level_act() -> None:
    for kind, extra in (("efficient", {}), ("base", {"lowres_channels": 3})):
        unet = make(kind, **extra)
        base = run(unet)
        assert (run(unet, lowres=draw(9, 2, 3, 8, 8)) - base).abs().max() > 1e-3
        assert (run(unet, aug_timestep=700) - base).abs().max() > 1e-3
        assert (run(unet, timestep=700) - base).abs().max() > 1e-3
        with pytest.raises(ValueError, match="aug_timestep"):
            run(unet, aug_timestep=None)
        with pytest.raises(ValueError, match=r"lowres has .* expects \(3, 8, 8\)"):
            run(unet, lowres=draw(9, 2, 3, 4, 4))
    with pytest.raises(ValueError, match="expects None"):
        run(make("base"), lowres=draw(9, 2, 3, 8, 8))


@torch.no_grad()
def test_timestep_forms_agree() -> None:
    unet = make("base")
    forms = [run(unet, timestep=t) for t in (7.5, torch.tensor(7.5), torch.tensor([7.5]), torch.tensor([7.5, 7.5]))]
    assert all(torch.equal(forms[0], other) for other in forms[1:])
    assert not torch.equal(forms[0], run(unet, timestep=7))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        run(unet, timestep=torch.zeros(3))


def test_sinusoids() -> None:
    got = sinusoids(torch.tensor([0.0, 2.5]), 7)
    angles = [2.5 * 10000 ** (-i / 3) for i in range(3)]
    expected = [*map(math.cos, angles), *map(math.sin, angles), 0.0]
    assert torch.allclose(got[1], torch.tensor(expected), atol=1e-6)
    assert got[0].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert all(torch.equal(sinusoids(torch.tensor([0.0, 2.5], dtype=d), 7), got) for d in (torch.half, torch.double))


def test_cosine_log_snr_coordinate() -> None:
    timestep = torch.tensor([0.0, 499.5, 999.5, 250.0], dtype=torch.float64)
    alpha_bar = torch.cos(((timestep + 0.5) / 1000 + 0.008) / 1.008 * math.pi / 2).square()
    log_snr = torch.log(alpha_bar / (1 - alpha_bar)).clamp(-20, 20)
    assert torch.allclose(cosine_log_snr_coordinate(timestep), (20 - log_snr) * 25, atol=1e-6)
    with torch.no_grad():
        outs = [run(make("efficient", time_input=kind)) for kind in ("timestep", "cosine_log_snr")]
    assert not torch.allclose(outs[0], outs[1], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_residual_block_is_adms(resample: str | None) -> None:
    options = Options(time_embed_dim=6, norm_groups=2, residual_scale=0.5)
    block = ResnetBlock(4, 8, options, resample).double()
    for p in block.parameters():
        p.copy_(draw(p.numel(), *p.shape))
    x, emb = draw(1, 2, 4, 4, 4), draw(2, 2, 6)

    def sample(y: torch.Tensor) -> torch.Tensor:
        if resample == "down":
            return (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4
        return y.repeat_interleave(2, -1).repeat_interleave(2, -2) if resample == "up" else y

    h = block.conv1(sample(F.silu(F.group_norm(x, 2, block.norm1.weight, block.norm1.bias))))
    scale, shift = block.time_emb_proj(emb)[..., None, None].split(8, dim=1)
    h = F.group_norm(h, 2, block.norm2.weight, block.norm2.bias) * (1 + scale) + shift
    expected = (block.conv_shortcut(sample(x)) + block.conv2(F.silu(h))) * 0.5
    assert torch.allclose(block(x, emb), expected, rtol=1e-12, atol=1e-12)


def order_of(unet: Any, level: nn.Module) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Name, input and output resolution of the parts of a level in the order they ran."""
    seen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    hooks = []

    def note(name: str) -> Any:
        return lambda _, args, out: seen.append((name, tuple(args[0].shape[2:]), tuple(out.shape[2:])))

    for name, module in level.named_modules():
        if re.fullmatch(r"conv|(resnets|attentions)\.\d+", name):
            hooks.append(module.register_forward_hook(note(name)))
    run(unet, **image_inputs(unet, size=(16, 16)))
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_dblock_strides_first_and_ublock_upsamples_last() -> None:
    unet = make("efficient")
    down, up = order_of(unet, unet.down_blocks[1]), order_of(unet, unet.up_blocks[0])
    small, large = (4, 4), (8, 8)
    assert down == [
        ("conv", large, small),
        ("resnets.0", small, small),
        ("resnets.1", small, small),
        ("attentions.0", small, small),
    ]
    assert up == [
        ("resnets.0", small, small),
        ("resnets.1", small, small),
        ("attentions.0", small, small),
        ("conv", small, large),
    ]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["nearest", "transposed", "pixel_shuffle"])
@pytest.mark.parametrize("skip", ["add", "concat", "concat_each"])
def test_every_option_of_the_efficient_network_acts(kind: str, skip: str) -> None:
    unet = make("efficient", upsample=kind, skip=skip, strides=(1, 2))
    out = run(unet, **image_inputs(unet, size=(6, 4)))
    assert out.shape == (2, 3, 6, 4)
    joins = [block.conv1.in_channels for level in unet.up_blocks for block in level.resnets]
    assert joins == {"add": [24, 24, 16], "concat": [24, 24, 32], "concat_each": [48, 48, 32]}[skip]
    for index in range(2):  # each level's skip reaches the output by itself
        level = unet.down_blocks[index]
        hook = level.register_forward_hook(lambda _, args, out: (out[0], tuple(2 * s for s in out[1])))
        changed = run(unet, **image_inputs(unet, size=(6, 4)))
        hook.remove()
        lowest_has_none = index == 1 and skip != "concat_each"
        assert torch.equal(changed, out) == lowest_has_none


@torch.no_grad()
def test_shortcut_convolutions() -> None:
    always, needed = (make("efficient", shortcut_conv=kind) for kind in ("always", "if_needed"))
    assert all(m.conv_shortcut is not None for m in always.modules() if isinstance(m, ResnetBlock))
    assert all(m.conv_shortcut is None for m in needed.modules() if isinstance(m, ResnetBlock))


@torch.no_grad()
def test_attention_levels_and_kinds() -> None:
    for levels, expected in (((), [0, 0, 0, 0, 0]), ((0,), [1, 0, 0, 0, 2]), ((1,), [0, 1, 1, 2, 0])):
        unet = make("base", attention_levels=levels)
        assert [len(level.attentions) for level in unet._levels()] == expected
        run(unet)
    cross = make("efficient_cross")
    assert all(layer.to_k is None for level in cross._levels() for layer in level.attentions)


@torch.no_grad()
@pytest.mark.parametrize("change", [{"activation": "gelu"}, {"residual_scale": 0.5}])
def test_base_options_act(change: dict[str, Any]) -> None:
    assert (run(make("base", **change)) - run(make("base"))).abs().max() > 1e-3


def test_dropout_acts_in_training_only() -> None:
    unet = make("base", dropout=0.5)
    assert torch.equal(run(unet), run(unet))
    unet.train()
    assert not torch.equal(run(unet), run(unet))


COUNTS = ["in_channels", "out_channels", "norm_groups", "head_channels", "time_embed_dim", "text_dim", "text_proj_dim"]


@pytest.mark.parametrize(
    ("cls", "change", "message"),
    [
        (BaseUNet, {"head_dim": 7}, "head_dim 7 does not divide the attention width 32"),
        (BaseUNet, {"norm_groups": 5}, "norm_groups 5 does not divide"),
        (BaseUNet, {"num_res_blocks": (1, 2, 3)}, r"num_res_blocks \[1, 2, 3\]: give one entry for every level"),
        (BaseUNet, {"num_res_blocks": (1, 0)}, "at least 1"),
        (BaseUNet, {"attention_levels": (2,)}, "levels 0 to 1"),
        (BaseUNet, {"attention_levels": (1, -1)}, r"attention_levels \[-1\] do not exist; .* levels 0 to 1"),
        (BaseUNet, {"channel_mult": ()}, r"channel_mult \[\].*: give one entry .* at least one level"),
        (BaseUNet, {"text_norm": "batch"}, "text_norm must be one of layer, group, got 'batch'"),
        (BaseUNet, {"text_norm": "group"}, "divisible by 32, got 24"),
        (BaseUNet, {"text_pooling": "max"}, "text_pooling must be one of"),
        (BaseUNet, {"pool_heads": 5}, "pool_heads 5 does not divide"),
        (BaseUNet, {"activation": "relu"}, "activation must be one of silu, gelu"),
        (BaseUNet, {"patch_size": 0}, "patch_size must be at least 1"),
        (BaseUNet, {"head_channels": 20}, "head_channels 20 is not divisible by norm_groups 8"),
        (BaseUNet, {"input_skip": True, "out_channels": 6}, "the 3 channels of the input .* to the 6 of the output"),
        (EfficientUNet, {"input_skip": True, "lowres_channels": 1}, "the 1 of the low-resolution image"),
        (EfficientUNet, {"strides": (2,)}, "one entry for every level"),
        (EfficientUNet, {"strides": (2, 0)}, "at least 1"),
        (EfficientUNet, {"heads": 5}, "heads 5 does not divide"),
        (EfficientUNet, {"skip": "multiply"}, "skip must be one of"),
        (EfficientUNet, {"upsample": "bilinear"}, "upsample must be one of"),
        (EfficientUNet, {"attention": "none"}, "attention must be one of"),
        (EfficientUNet, {"shortcut_conv": "never"}, "shortcut_conv must be one of always, if_needed, got 'never'"),
        (EfficientUNet, {"time_input": "sigma"}, "time_input must be one of"),
        (EfficientUNet, {"attention_levels": (2,)}, "levels 0 to 1"),
        (EfficientUNet, {"attention_levels": (-1,)}, r"attention_levels \[-1\] do not exist; .* levels 0 to 1"),
        (BaseUNet, {"model_channels": -8}, "model_channels must be at least 1, got -8"),
        (BaseUNet, {"channel_mult": (1, 0)}, r"channel_mult \[1, 0\].* must be at least 1"),
        (EfficientUNet, {"channels": (16, -8)}, r"channels \[16, -8\].* must be at least 1"),
        (BaseUNet, {"lowres_channels": -1}, "lowres_channels must be at least 0.* got -1"),
        (BaseUNet, {"residual_scale": 0.0}, r"residual_scale must be above 0 and finite, got 0\.0"),
        *((BaseUNet, {name: 0}, f"^{name} must be at least 1, got 0$") for name in (*COUNTS, "head_dim", "pool_heads")),
        *((EfficientUNet, {name: 0}, f"^{name} must be at least 1, got 0$") for name in (*COUNTS, "heads")),
    ],
)
def test_impossible_options_are_refused(cls: Any, change: dict[str, Any], message: str) -> None:
    arguments = BASE if cls is BaseUNet else EFFICIENT
    with pytest.raises(ValueError, match=message):
        cls(**{**arguments, **change})


def test_wrong_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="4 channels, this network expects 3"):
        run(make("base"), sample=draw(0, 2, 4, 8, 8))
    with pytest.raises(ValueError, match="without timestep"):
        run(make("base"), timestep=None)


@pytest.mark.parametrize("kind", ["base", "efficient"])
def test_what_is_no_batch_of_noisy_pictures_is_refused(kind: str) -> None:
    """Integer pictures would come back rounded, one text would meet two pictures."""
    unet = make(kind)
    with pytest.raises(ValueError, match=r"dtype torch\.int64; give \(B, C, H, W\) floats"):
        run(unet, sample=torch.zeros(2, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"sample has shape \(3, 8, 8\)"):
        run(unet, sample=draw(0, 3, 8, 8))
    given, text = image_inputs(unet), draw(3, 1, 3, 24)
    for name, value in (("text", text), ("context", unet(text=text))):
        with pytest.raises(ValueError, match=f"{name} has batch size 1, sample 2; give one row for each picture"):
            unet(**given, **{name: value})
    if unet.config.lowres_channels:
        with pytest.raises(ValueError, match="lowres has batch size 1, sample 2"):
            run(unet, lowres=draw(2, 1, 3, 8, 8))


@torch.no_grad()
@pytest.mark.parametrize("skip", ["add", "concat"])
def test_the_efficient_network_is_its_parts_in_order(skip: str) -> None:
    """Strided convolution, blocks; the lowest level twice; then each skip, and the stem as the last of them."""
    unet = make("efficient", text_dim=None, skip=skip, residual_scale=0.25)
    given = image_inputs(unet)

    def join(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x + y) * 0.25 if skip == "add" else torch.cat([x, y], 1)

    levels = [sinusoids(given[name], 16).double() for name in ("timestep", "aug_timestep")]
    emb = F.silu(unet.time_embedding(levels[0]) + unet.class_embedding(levels[1]))
    stem = unet.conv_in(torch.cat([given["sample"], given["lowres"]], 1))
    (down_0, down_1), (up_1, up_0) = unet.down_blocks, unet.up_blocks
    first = down_0.resnets[0](down_0.conv(stem), emb)
    x = down_1.resnets[1](down_1.resnets[0](down_1.conv(first), emb), emb)
    x = up_1.resnets[1](up_1.resnets[0](down_1.attentions[0](x), emb), emb)
    x = up_0.resnets[0](join(up_1.conv(up_1.attentions[0](x)), first), emb)
    x = join(up_0.conv(x), stem)
    expected = unet.conv_out(F.silu(unet.conv_norm_out(x)))
    assert torch.allclose(unet(**given), expected, rtol=1e-12, atol=1e-12)
