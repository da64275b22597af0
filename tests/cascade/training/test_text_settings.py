"""How a stage reads text: every setting acts on what its network is given, and is kept for sampling."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen import ImagenPipeline
from imagen.cascade.training.compose import compose, save
from imagen.cascade.training.config.run import RunConfig, TextConfig
from imagen.cascade.training.inputs.texts import Texts
from imagen.cascade.training.task import StageTask
from imagen.conditions.text import Words
from imagen.text.encoder import tokenize
from imagen.text.reading import TextDefaults
from imagen.training.trainer import Trainer
from tests.factories import WIDTH

READING = {"padding": "visible", "null": "empty", "lowercase": True}
CHANGES: dict[str, Any] = {
    "max_length": 3,
    "dtype": "bfloat16",
    "padding": "visible",
    "unconditional": "empty",
    "lowercase": True,
}


def read(t5: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Any]:
    """Two captions and the null text, as numbers and masks; and the captions as the encoder gets them."""
    seen: list[list[str]] = []

    def spy(tokenizer: Any, captions: list[str], *rest: Any, **given: Any) -> Any:
        seen.append(captions)
        return tokenize(tokenizer, captions, *rest, **given)

    monkeypatch.setattr("imagen.cascade.training.inputs.texts.tokenize", spy)
    config = RunConfig("run", unet={"text_dim": WIDTH}, text=TextConfig(encoder=t5, **{"max_length": 7, **settings}))
    texts = Texts(config).load(torch.device("cpu"))
    encoded = texts(Words(["A red CIRCLE", "two blue star"]))
    return [seen, *(part.tolist() for part in (*encoded, *texts.null(2, WIDTH)))]


@pytest.mark.filterwarnings("ignore:a caption of")
def test_every_setting_acts(t5: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CHANGES.keys() | {"encoder", "cache"} == TextConfig.__dataclass_fields__.keys()  # see test_cached
    plain = read(t5, monkeypatch)
    assert read(t5, monkeypatch) == plain
    for field, value in CHANGES.items():
        assert read(t5, monkeypatch, **{field: value}) != plain, f"text.{field} has no effect"


@pytest.mark.filterwarnings("ignore:a caption of")
def test_how_text_is_read_is_kept_for_sampling(config: Callable[..., RunConfig], t5: str, tmp_path: Path) -> None:
    assert READING.keys() == {item.name for item in dataclasses.fields(TextDefaults)}
    assert not set(READING.items()) & set(dataclasses.asdict(TextDefaults()).items())
    changes = {"text.padding": "visible", "text.unconditional": "empty", "text.lowercase": True, "text.max_length": 9}
    for name, length in (("long", 9), ("short", 8)):
        stage = {"name": "base64"} if name == "long" else {"name": "sr256", "size": 16, "lowres_size": 8}
        more: dict[str, Any] = {"stage": {"size": 8, **stage}, "unet.lowres_channels": 0 if name == "long" else 3}
        more |= {"text.encoder": t5, "unet.text_dim": WIDTH, "train.steps": 1, "text.max_length": length}
        settings = config(run_dir=str(tmp_path / name), **{**changes, **more})
        assert Trainer(StageTask(settings)).fit()
        record = json.loads((tmp_path / name / "model" / "stage.json").read_text())
        assert record["text"] == {"encoder": t5, "max_length": length, **READING}
    save(compose({"base64": tmp_path / "long", "sr256": tmp_path / "short"}), tmp_path / "model")
    again = compose({"base64": tmp_path / "model", "sr256": tmp_path / "model"})
    for reader in (ImagenPipeline.from_pretrained(tmp_path / "model").reader, again.reader):
        assert dataclasses.asdict(reader.defaults) == READING
        assert reader.max_length == 9, "what one stage can read the others can"


def test_weights_are_composed_in_the_dtype_asked_for(config: Callable[..., RunConfig], t5: str) -> None:
    settings = config(**{"text.encoder": t5, "unet.text_dim": WIDTH, "train.steps": 1})
    assert Trainer(StageTask(settings)).fit()
    pipe = compose({"base64": Path(settings.run_dir)}, dtype=torch.bfloat16)
    for part in (pipe.base_unet, pipe.text_encoder):
        assert {value.dtype for value in part.state_dict().values()} == {torch.bfloat16}
