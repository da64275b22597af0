"""Group norm hands on the dtype that it was given, wherever autocast has others norm in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.factories import seeded, tiny_base
from unets.norms import GroupNorm

META = torch.device("meta")
SHAPES = [(2, 8, 5, 3), (1, 8, 1, 1), (3, 8, 7)]


def pair(dtype: torch.dtype = torch.float32) -> tuple[GroupNorm, nn.GroupNorm]:
    ours, plain = GroupNorm(4, 8, eps=1.0), nn.GroupNorm(4, 8, eps=1.0)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, generator=seeded())
    ours.load_state_dict(plain.state_dict())
    return ours.to(dtype), plain.to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_on_a_cpu_it_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    ours, plain = pair(dtype)
    x = torch.randn(shape, generator=seeded()).to(dtype)
    assert torch.equal(ours(x), plain(x))
    ours, plain = pair()
    assert torch.equal(ours(x.bfloat16()), plain(x.bfloat16()))  # beside weights in float32


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_elsewhere_it_hands_on_the_dtype_that_it_was_given(shape: tuple[int, ...]) -> None:
    ours = pair()[0].to(META)
    out = ours(torch.empty(shape, dtype=torch.bfloat16, device=META))
    assert (out.dtype, out.shape) == (torch.bfloat16, shape)
    assert ours(torch.empty(shape, device=META)).dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
def test_what_it_does_elsewhere_is_the_norm_but_for_rounding(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that a picture of the CPU lies elsewhere."""
    ours, plain = pair()
    x = (3 * torch.randn(shape, generator=seeded()) + 2).bfloat16().requires_grad_()
    wide = x.detach().float().requires_grad_()
    wanted = plain(wide)
    weights = torch.randn(shape, generator=seeded())
    (wanted * weights).sum().backward()
    out = ours.in_dtype_of(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), wanted, rtol=1e-2, atol=2e-2)
    (out * weights).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), wide.grad, rtol=3e-2, atol=2e-2)
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert one.grad.dtype == torch.float32
        torch.testing.assert_close(one.grad, other.grad, rtol=2e-2, atol=0.3)


def test_the_networks_norm_pictures_so() -> None:
    found = [module for module in tiny_base().modules() if type(module) in (GroupNorm, nn.GroupNorm)]
    assert len(found) > 5
    assert {type(module) for module in found} == {GroupNorm}
