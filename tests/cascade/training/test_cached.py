"""Training from a text cache: the run that the encoder would have given, without the encoder."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5EncoderModel

from imagen.cascade.training.inputs.texts import with_cache
from imagen.cascade.training.task import StageTask
from imagen.cli.text_cache import main as encode_captions
from imagen.cli.train import main as train
from imagen.errors import ConfigError
from imagen.stages.folder import read_run
from imagen.text.reading import TextDefaults
from imagen.training.config.resumed import changed_keys
from imagen.training.trainer import Trainer
from tests.factories import WIDTH

TEXT = {"unet.text_dim": WIDTH, "text.max_length": 12, "train.steps": 4, "train.log_every": 1}
ENCODE = ["--num", "16", "--device", "cpu"]


@pytest.fixture
def no_encoder(monkeypatch):
    """From here on no encoder and no tokenizer can be made."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an encoder or a tokenizer is loaded")

    def forbid() -> None:
        monkeypatch.setattr(T5EncoderModel, "__init__", refuse)
        monkeypatch.setattr(T5EncoderModel, "from_pretrained", refuse)
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)

    return forbid


def weights(run: Path) -> bytes:
    return (run / "model/unet/diffusion_pytorch_model.safetensors").read_bytes()


def newest(run: Path) -> Path:
    return sorted((run / "state").iterdir())[-1]


def test_alone_in_a_batch_a_caption_gives_the_same_run_to_the_bit(
    write_config, config, read_metrics, no_encoder, t5, tmp_path
):
    """Batches of one are encoded alike in both; grids, dropped captions and the export are part of the run."""
    grid = {"grid.every": 2, "grid.num_inference_steps": 2, "grid.prompts": ["a red circle"]}
    changes = {**TEXT, **grid, "train.batch_size": 1, "stage.text_dropout": 0.3}
    live, cached = tmp_path / "live", tmp_path / "cached"
    assert Trainer(StageTask(config(run_dir=str(live), **{"text.encoder": t5}, **changes))).fit()
    path = str(write_config(**{"text.encoder": t5, "text.cache": str(tmp_path / "c")}, **changes))
    assert encode_captions(["--config", path, *ENCODE, "--batch_size", "1"]) == 0

    no_encoder()
    assert Trainer(StageTask(config(run_dir=str(cached), **{"text.cache": str(tmp_path / "c")}, **changes))).fit()
    assert read_metrics(cached) == read_metrics(live)
    assert weights(cached) == weights(live)
    for name in ("step-00000002.png", "step-00000004.png"):
        assert Image.open(cached / "samples" / name).tobytes() == Image.open(live / "samples" / name).tobytes()
    for run in (cached, live):
        stage = read_run(run)
        assert (stage.encoder, stage.max_length, stage.text) == (t5, 12, TextDefaults())


def test_batches_give_the_same_losses_to_rounding(write_config, config, read_metrics, no_encoder, t5, tmp_path):
    live, cached = tmp_path / "live", tmp_path / "cached"
    assert Trainer(StageTask(config(run_dir=str(live), **{"text.encoder": t5}, **TEXT))).fit()
    path = str(write_config(**{"text.encoder": t5, "text.cache": str(tmp_path / "c")}, **TEXT))
    assert encode_captions(["--config", path, *ENCODE]) == 0
    no_encoder()
    assert Trainer(StageTask(config(run_dir=str(cached), **{"text.cache": str(tmp_path / "c")}, **TEXT))).fit()
    for one, other in zip(read_metrics(live), read_metrics(cached), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.fixture
def cache(write_config, t5, tmp_path) -> Path:
    """A float32 cache of what the tiny run reads."""
    folder = tmp_path / "c"
    path = str(write_config(**{"text.encoder": t5, "text.cache": str(folder)}, **TEXT))
    assert encode_captions(["--config", path, *ENCODE]) == 0
    return folder


def test_resuming_is_exact(config, read_metrics, cache, tmp_path):
    whole = config(run_dir=str(tmp_path / "whole"), **{**TEXT, "text.cache": str(cache)})
    assert Trainer(StageTask(whole)).fit()
    parts = replace(whole, run_dir=str(tmp_path / "parts"))
    first = Trainer(StageTask(parts))
    first._train_step = stop_after(first, 3)
    assert not first.fit()
    assert Trainer(StageTask(parts)).fit()
    assert read_metrics(parts.run_dir) == read_metrics(whole.run_dir)
    for name in ("unet.safetensors", "ema.safetensors"):
        a, b = (load_file(newest(Path(run)) / name) for run in (whole.run_dir, parts.run_dir))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_may_go_on_with_the_cache_of_its_encoder(config, cache, t5):
    live = config(**{**TEXT, "text.encoder": t5})
    cached = with_cache(config(**{**TEXT, "text.cache": str(cache)}))
    assert changed_keys(asdict(live), cached, StageTask(cached).changes) == ([f"text.cache None -> {cache}"], [])


def stop_after(trainer: Trainer, step: int):
    """The trainer's step, which asks to stop as SIGTERM does."""
    train_step = trainer._train_step
    return lambda batches: train_step(batches) or trainer.step == step


def other_weights(folder: Path) -> None:
    values = load_file(folder / "model.safetensors")
    values["encoder.final_layer_norm.weight"][0] += 1e-6
    save_file(values, folder / "model.safetensors", {"format": "pt"})


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_weights, "was not made by text.encoder .* \\(the encoder's files differ\\): encode again"),
        (other_tokenizer, "was not made by text.encoder .* \\(the tokenizer's files differ\\): encode again"),
        ({"text.encoder": "some/other"}, "text.encoder 'some/other' is not on this machine, and text.cache .* names"),
        ({"text.max_length": 9}, "text.max_length 9 differs from .* set text.max_length 12"),
        ({"text.dtype": "bfloat16"}, "text.dtype bfloat16 differs from .* set text.dtype float32"),
        ({"text.cache": "/nowhere"}, "text.cache: there is no text cache in '/nowhere'"),
        ({"unet.text_dim": 32}, "unet.text_dim 32 differs from the encoder's width 16: set unet.text_dim 16"),
        ({"unet.text_dim": None}, "unet.text_dim is null"),
        ({"grid": {"every": 2, "prompts": ["two owls"]}}, "lacks the prompt 'two owls' of grid.prompts"),
    ],
)
def test_what_does_not_belong_together_is_refused(config, cache, t5, tmp_path, change, told):
    encoder = tmp_path / "encoder"
    shutil.copytree(t5, encoder)
    if callable(change):
        change(encoder)
    changes = {**TEXT, "text.cache": str(cache), "text.encoder": str(encoder)}
    settings = config(run_dir=str(tmp_path / "r"), **{**changes, **(change if isinstance(change, dict) else {})})
    with pytest.raises(ConfigError, match=told) as caught:
        Trainer(StageTask(settings))
    assert "\n" not in str(caught.value)


def test_the_encoder_is_compared_where_it_is_and_taken_from_the_cache_where_it_is_not(config, cache, t5, tmp_path):
    copied, text = tmp_path / "copy", {**TEXT, "text.cache": str(cache)}
    shutil.copytree(t5, copied)
    assert with_cache(config(**text)).text.encoder == t5
    assert with_cache(config(**text, **{"text.encoder": str(copied)})).text.encoder == str(copied)
    moved = shutil.move(t5, tmp_path / "moved")
    try:
        assert with_cache(config(**text, **{"text.encoder": t5})).text.encoder == t5
    finally:
        shutil.move(moved, t5)


def test_a_missing_caption_is_named_with_the_command_that_adds_it(write_config, read_metrics, cache, tmp_path, capsys):
    run = tmp_path / "run"
    path = str(write_config(**{**TEXT, "text.cache": str(cache), "train.steps": 6}))  # 24 captions; 16 are there
    capsys.readouterr()
    assert train(["--config", path]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    command = f"python -m imagen.text.cache --config {run / 'config.yaml'} --num 24"
    assert "lacks the caption 'a" in error or "lacks the caption 't" in error
    assert error.endswith(f": add it with {command}")
    assert encode_captions(command.split()[3:]) == 0
    assert train(["--config", path]) == 0
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5, 6]


def test_the_captions_of_a_folder_are_read_without_its_pictures(write_config, t5, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, caption in (("a", "a red circle"), ("b", " a blue  square \n"), ("c", "a red circle")):
        (pictures / f"{name}.png").write_bytes(b"no picture")
        (pictures / f"{name}.txt").write_text(caption)
    data = {"data.kind": "folder", "data.path": str(pictures), "text.encoder": t5}
    path = str(write_config(**{**TEXT, **data}))
    assert encode_captions(["--config", path, "--out", str(tmp_path / "c"), "--device", "cpu"]) == 0
    assert "3 captions given, 3 encoded now" in capsys.readouterr().out  # two different ones, and the empty caption
    assert encode_captions(["--config", path, "--out", str(tmp_path / "c"), "--num", "2"]) == 2
    assert "--num 2: data.kind folder has an end" in capsys.readouterr().err
