"""The map that makes encoder states uncorrelated: what it is fitted to, its precision, and how networks read by it."""

from pathlib import Path

import pytest
import torch

from tests.unets.helpers import KINDS, draw, image_inputs, make
from unets.conditioning import TextWhitening


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
