"""The network that a run trains: new, from trained weights or from a resume point, whole or as an adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imagen.cascade.training.config.run import RunConfig, StageTrainConfig, TextConfig
from imagen.cascade.training.config.sections import LoraConfig, StageConfig
from imagen.cascade.training.inputs.source import make_source
from imagen.cascade.training.inputs.texts import Texts
from imagen.cascade.training.start import network
from imagen.cascade.training.start.network import fit_whitening, prepare_unet
from imagen.conditions.text import Words
from imagen.errors import ConfigError
from imagen.training.loader import make_loader
from imagen.training.state.ema import trained_state
from tests.factories import WIDTH, seeded, tiny_base

TINY: dict[str, Any] = {
    "kind": "BaseUNet", "model_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_levels": [1],
    "head_dim": 8, "norm_groups": 4, "text_dim": None,
}  # fmt: skip


@pytest.fixture
def start(tmp_path: Path) -> str:
    """Trained weights of the tiny network."""
    tiny_base(5, text_dim=None).save_pretrained(tmp_path / "unet")
    return str(tmp_path)


def run(start: str | None = None, rank: int | None = None, **train: Any) -> RunConfig:
    lora = LoraConfig() if rank is None else LoraConfig(rank, targets=("to_q", "to_k"))
    return RunConfig("run", unet=TINY, lora=lora, train=StageTrainConfig(init_from=start, **train))


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_weights_are_new_the_start_s_or_the_resume_point_s(start: str, dtype: Any) -> None:
    new, again = (prepare_unet(run(dtype=dtype), None).state_dict() for _ in range(2))
    begun = prepare_unet(run(start, dtype=dtype), None).state_dict()
    trained = tiny_base(5, text_dim=None).to(getattr(torch, dtype)).state_dict()
    assert same(new, again)
    assert same(begun, trained)
    assert not same(begun, new)
    saved = {name: value + 1 for name, value in new.items()}
    assert same(prepare_unet(run(start, dtype=dtype), saved).state_dict(), saved)
    assert same(prepare_unet(run("/gone", dtype=dtype), saved).state_dict(), saved), "its start is needed no more"


def test_an_adapter_begins_without_effect_is_the_seed_s_and_has_a_dtype_of_its_own(start: str) -> None:
    trained = tiny_base(5, text_dim=None)
    unet: Any = prepare_unet(run(start, 2), None)
    z, t = torch.randn(2, 3, 8, 8, generator=seeded()), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        assert torch.equal(unet.eval()(z, t), trained(z, t))
    adapter = trained_state(unet)
    matrices = {name for name, value in adapter.items() if value.ndim == 2}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in matrices} == {"to_q", "to_k"}
    assert {min(adapter[name].shape) for name in matrices} == {2}
    torch.manual_seed(99)
    assert same(trained_state(prepare_unet(run(start, 2), None)), adapter)
    assert not same(trained_state(prepare_unet(run(start, 2, seed=1), None)), adapter)
    half: Any = prepare_unet(replace(run(start, 2), lora=LoraConfig(2, targets=("to_q",), base_dtype="bfloat16")), None)
    dtypes = {kept: {p.dtype for p in half.parameters() if p.requires_grad == kept} for kept in (True, False)}
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
    double: Any = prepare_unet(run(start, 2, dtype="float64"), None)
    assert {p.dtype for p in double.parameters()} == {torch.float64}


def test_an_adapter_s_scale_is_alpha_over_rank_and_it_goes_on_over_its_network(start: str) -> None:
    z, t = torch.randn(2, 3, 8, 8, generator=seeded()), torch.tensor([3.0, 700.0])
    first = prepare_unet(run(start, 2), None)
    saved = {name: torch.ones_like(v) if "lora_B" in name else v for name, v in trained_state(first).items()}
    plain = tiny_base(5, text_dim=None)

    def shift(alpha: float | None) -> torch.Tensor:
        config = replace(run(start, 2), lora=LoraConfig(2, alpha, ("to_q", "to_k")))
        unet: Any = prepare_unet(config, saved)
        assert same(trained_state(unet), saved)
        layer = next(module for name, module in unet.named_modules() if name.endswith("to_q"))
        return layer.scaling["default"]

    assert [shift(alpha) for alpha in (None, 2.0, 6.0)] == [1.0, 1.0, 3.0]
    unet: Any = prepare_unet(run(start, 2), saved)
    with torch.no_grad():
        assert not torch.equal(unet.eval()(z, t), plain(z, t))
    with pytest.raises(ConfigError, match="^lora: .*'to_w'"):
        prepare_unet(replace(run(start, 2), lora=LoraConfig(2, targets=("to_w",))), None)


@pytest.mark.parametrize(("steps", "limit", "read"), [(3, 2048, 12), (9, 10, 12), (9, 12, 12), (9, 13, 16)])
def test_the_text_s_mean_and_covariance_are_those_of_the_first_captions_that_are_read(
    t5: str, monkeypatch: pytest.MonkeyPatch, steps: int, limit: int, read: int
) -> None:
    monkeypatch.setattr(network, "CAPTIONS", limit)
    config = RunConfig(
        "run", stage=StageConfig(size=8), text=TextConfig(t5, max_length=99),
        unet={**TINY, "text_dim": WIDTH}, train=StageTrainConfig(steps=steps, batch_size=4, num_workers=0),
    )  # fmt: skip
    source, texts = make_source(config), Texts(config).load(torch.device("cpu"))
    seen: list[Any] = []
    unet: Any = SimpleNamespace(whitening=SimpleNamespace(fit=lambda *given: seen.append(given)))
    fit_whitening(unet, config, source, texts)
    batches = iter(make_loader(config, source, 0, rank=0, world=1))
    encoded = [texts(Words.of(next(batches))) for _ in range(read // 4)]
    tokens = torch.cat([text[mask.bool()] for text, mask in encoded]).double()
    ((count, mean, covariance),) = seen
    assert count == len(tokens)
    torch.testing.assert_close(mean, tokens.mean(dim=0))
    torch.testing.assert_close(covariance, torch.cov(tokens.T, correction=0))
    fit_whitening(SimpleNamespace(whitening=None), None, None, None)  # type: ignore[arg-type]
