"""The text's whitening is fitted to the run's own captions, once, and stays."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen.cascade.training.start import network
from imagen.cascade.training.task import StageTask
from imagen.conditions.text import Words
from imagen.errors import ConfigError
from imagen.training.loader import make_loader
from imagen.training.trainer import Trainer
from tests.factories import WIDTH, tiny_text_encoder, tiny_tokenizer

STEPS = 12


@pytest.fixture
def with_text(config: Any, tmp_path: Path) -> Any:
    """A run of 48 captions that whitens them."""
    folder = tmp_path / "t5"
    tiny_text_encoder().save_pretrained(folder / "text_encoder")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    text = {"unet.text_dim": WIDTH, "unet.text_whitening": True, "text.encoder": str(folder)}
    return config(**text, **{"train.steps": STEPS, "train.accumulation": 2})


def test_it_is_fitted_to_the_first_captions(with_text: Any) -> None:
    trainer = Trainer(StageTask(with_text))
    loader = make_loader(with_text, trainer.source, 0, rank=0, world=1)
    words = [Words.of(raw) for raw in itertools.islice(loader, 2 * STEPS)]
    encoded = [trainer.task.texts(batch) for batch in words]
    tokens = torch.cat([text[mask.bool()] for text, mask in encoded]).double()
    assert len(tokens) > 48 * 3
    white = trainer.module.whitening(tokens.float()).double()
    assert white.mean(0).abs().max() < 1e-4
    variances, directions = torch.linalg.eigh(torch.cov(tokens.T, correction=0))
    expected = variances / (variances + 0.01 * variances.mean())
    assert torch.allclose(torch.cov((white @ directions).T, correction=0), torch.diag(expected), atol=1e-3)


def test_it_is_kept_by_training_and_by_resuming(with_text: Any) -> None:
    first = Trainer(StageTask(replace(with_text, train=replace(with_text.train, steps=STEPS, time_limit=1e-9))))
    fitted = first.module.whitening.matrix.clone()
    assert not first.fit()
    second = Trainer(StageTask(with_text))
    assert second.step == 1
    assert torch.equal(second.module.whitening.matrix, fitted)
    second.fit()
    assert torch.equal(second.module.whitening.matrix, fitted)
    assert torch.equal(second.ema.average["whitening.matrix"], fitted)


def test_a_run_from_other_weights_keeps_theirs(with_text: Any, tmp_path: Path) -> None:
    first = Trainer(StageTask(with_text))
    first.fit()
    other = replace(with_text.train, init_from=f"{with_text.run_dir}/model", seed=9)
    second = Trainer(StageTask(replace(with_text, run_dir=str(tmp_path / "second"), train=other)))
    assert torch.equal(second.module.whitening.matrix, first.module.whitening.matrix)


def test_too_few_captions_are_told(with_text: Any) -> None:
    one = replace(with_text.train, steps=1, batch_size=1, accumulation=1)
    told = (
        r"^unet.text_whitening is fitted .*: 1 captions have 8, and text of width 16 needs 32; raise train.steps or "
        "train.batch_size, or set unet.text_whitening false$"
    )
    with pytest.raises(ConfigError, match=told):
        Trainer(StageTask(replace(with_text, train=one, text=replace(with_text.text, max_length=8))))


def test_where_no_longer_run_would_help_more_captions_are_asked_for(
    with_text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "CAPTIONS", 4)
    short = replace(with_text, text=replace(with_text.text, max_length=1))
    with pytest.raises(ConfigError, match="captions have .*; give more or longer captions, or set unet.text_whitening"):
        Trainer(StageTask(short))
