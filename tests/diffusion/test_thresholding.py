"""Thresholding: the exact quantile, figure A.31, and every image on its own."""

from __future__ import annotations

import pytest
import torch

from imagen.diffusion.thresholding import Thresholding, quantile


@pytest.mark.parametrize("p", [1e-9, 0.003, 0.25, 0.5, 0.9, 0.95, 0.995, 0.9999, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000, 1001])
def test_quantile_is_torchs(p: float, count: int) -> None:
    values = torch.randn(4, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    torch.testing.assert_close(quantile(values, p), torch.quantile(values, p, dim=1), rtol=0, atol=1e-14)


def test_quantile_with_ties_and_in_float32() -> None:
    values = torch.randint(0, 3, (2, 500), generator=torch.Generator().manual_seed(0)).float()
    for p in (0.3, 0.5, 0.995):
        torch.testing.assert_close(quantile(values, p), torch.quantile(values, p, dim=1))


def test_quantile_takes_more_values_than_torchs() -> None:
    count = 2**24 + 2
    values = torch.zeros(1, count)
    values[0, :3] = torch.tensor([3.0, 1.0, 2.0])  # ranks count - 1, count - 3 and count - 2
    p = (count - 2.75) / (count - 1)
    with pytest.raises(RuntimeError):
        torch.quantile(values, p, dim=1)
    assert quantile(values, p).item() == pytest.approx(1.25, abs=1e-6)


def test_dynamic_is_the_papers_figure() -> None:
    x0 = 3 * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0[2] *= 0.01
    out = Thresholding("dynamic", 0.95)(x0)
    for picture, result in zip(x0, out, strict=True):
        s = max(torch.quantile(picture.abs().flatten(), 0.95).item(), 1.0)
        torch.testing.assert_close(result, picture.clamp(-s, s) / s, rtol=0, atol=1e-12)
    assert torch.equal(out[2], x0[2]), "inside [-1, 1] nothing changes"


def test_a_picture_does_not_depend_on_its_batch() -> None:
    x0 = 2 * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x0[0] *= 10
    together = Thresholding()(x0)
    for i in range(3):
        assert torch.equal(together[i : i + 1], Thresholding()(x0[i : i + 1]))


def test_cap_and_static() -> None:
    x0 = 5 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Thresholding("dynamic", 0.95, cap=1.0)(x0), x0.clamp(-1, 1))
    assert torch.equal(Thresholding("dynamic", 0.95, cap=1.5)(x0), x0.clamp(-1.5, 1.5) / 1.5)
    assert torch.equal(Thresholding("static")(x0), x0.clamp(-1, 1))
    assert Thresholding("none")(x0) is x0


def test_the_default_is_the_papers() -> None:
    x0 = 2 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert Thresholding() == Thresholding("dynamic", 0.995, None)
    narrow = x0.bfloat16()
    for setting in (Thresholding(), Thresholding("static"), Thresholding(p=0.5)):
        assert torch.equal(setting(narrow), setting(narrow.float()).bfloat16())  # rounded once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dynamical"}, "thresholding is 'dynamical'; expected one of none, static, dynamic"),
        ({"p": 0.0}, "p=0.0"),
        ({"p": -0.1}, "p=-0.1"),
        ({"p": 1.001}, "p=1.001"),
        ({"p": 99.5}, "p=99.5"),
        ({"p": float("nan")}, "p=nan"),
        ({"cap": 0.999}, "cap=0.999"),
        ({"cap": float("nan")}, "cap=nan"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Thresholding(**options)  # type: ignore[arg-type]


def test_the_largest_value_is_a_quantile_and_the_edge_of_the_data_a_cap() -> None:
    x0 = 2 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    largest = x0.abs().amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(Thresholding(p=1.0)(x0), x0 / largest)
    assert torch.equal(Thresholding(p=1e-9, cap=1.0)(x0), x0.clamp(-1, 1))
