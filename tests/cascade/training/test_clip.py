"""A stage trained with a CLIP's text tower: live, from a cache, exported, composed and sampled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPTextModel

from imagen import ImagenPipeline
from imagen.cascade.training.compose import compose
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.inputs.texts import Texts, with_cache
from imagen.cascade.training.task import StageTask
from imagen.cli.compose import main
from imagen.cli.sample import main as sample
from imagen.cli.text_cache import main as encode_captions
from imagen.conditions.text import Words
from imagen.errors import ConfigError
from imagen.stages.folder import read_run
from imagen.text.cache.store import TextCache
from imagen.text.encoder import encode, load_text_encoder
from imagen.text.folders import fingerprint
from imagen.training.trainer import Trainer
from tests.factories import WIDTH, tiny_clip, tiny_clip_tokenizer, tiny_whole_clip

pytestmark = pytest.mark.filterwarnings("ignore:a caption of")
LENGTH = 20
TEXT = {"unet.text_dim": WIDTH, "text.max_length": LENGTH, "train.steps": 2, "sampling.num_inference_steps": 2}
Config = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A whole CLIP, as it is found on the Hub."""
    path = tmp_path_factory.mktemp("clip")
    tiny_whole_clip(positions=LENGTH).save_pretrained(path)
    tiny_clip_tokenizer().save_pretrained(path)
    return str(path)


def weights(run: Path) -> bytes:
    return (run / "model/unet/diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.parametrize("reading", [{}, {"text.padding": "visible", "text.unconditional": "empty"}])
def test_a_run_is_trained_exported_composed_and_sampled(
    config: Config, clip: str, tmp_path: Path, reading: dict[str, str]
) -> None:
    run, model = tmp_path / "run", tmp_path / "model"
    assert Trainer(StageTask(config(run_dir=str(run), **{**TEXT, **reading, "text.encoder": clip}))).fit()
    stage = read_run(run)
    assert (stage.encoder, stage.max_length) == (clip, LENGTH)
    assert main(["--base", str(run), "--out", str(model)]) == 0
    pipe = ImagenPipeline.from_pretrained(model)
    assert type(pipe.text_encoder) is CLIPTextModel
    expected = encode(*load_text_encoder(clip), ["a red circle"], LENGTH, padding=stage.text.padding)
    for found, wanted in zip(pipe.reader.encode("a red circle"), expected, strict=True):
        assert torch.equal(found, wanted)
    pictures = []
    for name in (run, model):  # a run as it lies is composed on the way
        out = tmp_path / f"{name.name}_pictures"
        assert sample(["a red circle", "--model", str(name), "--out", str(out), "--device", "cpu"]) == 0
        pictures.append([Image.open(path).tobytes() for path in sorted(out.glob("*.png"))])
    assert len(pictures[0]) == 1
    assert pictures[0] == pictures[1]


def test_a_cache_gives_the_run_that_the_encoder_gives(
    write_config: Any, config: Config, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, in batches of one; and no encoder is made."""
    live, cached, out = tmp_path / "live", tmp_path / "cached", tmp_path / "c"
    changes = {**TEXT, "train.batch_size": 1}
    assert Trainer(StageTask(config(run_dir=str(live), **{**changes, "text.encoder": clip}))).fit()
    path = str(write_config(**{**changes, "text.encoder": clip, "text.cache": str(out)}))
    assert encode_captions(["--config", path, "--num", "2", "--device", "cpu", "--batch_size", "1"]) == 0
    cache = TextCache(out)
    assert (cache.manifest.identity.width, cache.manifest.identity.encoder) == (WIDTH, clip)
    for found, wanted in zip(cache([""]), encode(*load_text_encoder(clip), [""], LENGTH), strict=True):
        assert torch.equal(found, wanted)
        assert found.shape[1] == 2, "start and end"

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an encoder or a tokenizer is loaded")

    monkeypatch.setattr(CLIPTextModel, "from_pretrained", refuse)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    assert Trainer(StageTask(config(run_dir=str(cached), **{**changes, "text.cache": str(out)}))).fit()
    assert weights(cached) == weights(live)


def test_the_fingerprint_sees_every_file_that_decides(config: Config, clip: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "clip", tmp_path / "c"
    shutil.copytree(clip, folder)
    tiny_clip_tokenizer().backend_tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    captions = tmp_path / "captions.txt"
    captions.write_text("a red circle\n")
    words = ["--captions", str(captions), "--out", str(out), "--text.encoder", str(folder), "--device", "cpu"]
    assert encode_captions([*words, "--text.max_length", str(LENGTH)]) == 0
    settings = config(**{**TEXT, "text.encoder": str(folder), "text.cache": str(out)})
    assert with_cache(settings) == settings
    before = asdict(fingerprint(folder, LENGTH))
    for name, part in (("merges.txt", "tokenizer"), ("vocab.json", "tokenizer"), ("config.json", "encoder")):
        content = (folder / name).read_text()
        (folder / name).write_text(content + "\n")
        after = asdict(fingerprint(folder, LENGTH))
        assert [key for key in before if before[key] != after[key]] == [part]
        with pytest.raises(ConfigError, match=f"the {part}'s files differ"):
            with_cache(settings)
        (folder / name).write_text(content)


def test_what_does_not_fit_is_refused_in_one_line(
    config: Config, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = "max_length 21 is more than the 20 positions of the text encoder: set 20"
    with pytest.raises(ConfigError, match=f"^text.encoder: {far}$"):
        Trainer(StageTask(config(**{**TEXT, "text.encoder": clip, "text.max_length": 21}))).fit()
    with pytest.raises(ConfigError, match="unet.text_dim 32 differs from the encoder's width 16: set unet.text_dim 16"):
        Trainer(StageTask(config(**{**TEXT, "text.encoder": clip, "unet.text_dim": 32}))).fit()
    (tmp_path / "captions.txt").write_text("a red circle\n")
    words = ["--captions", str(tmp_path / "captions.txt"), "--out", str(tmp_path / "c"), "--text.encoder", clip]
    assert encode_captions([*words, "--text.max_length", "21", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.endswith(f"text cache: error: {far}\n")
    assert not (tmp_path / "c").exists(), "nothing is begun that cannot be ended"


def test_a_caption_of_few_letters_and_many_tokens_is_told_of_when_it_is_cut(config: Config, clip: str) -> None:
    """CLIP's tokens are bytes at the least, and these letters have four each."""
    texts = Texts(config(**{**TEXT, "text.encoder": clip, "text.max_length": 9})).load(torch.device("cpu"))
    with pytest.warns(UserWarning, match="a caption of 14 tokens is cut at text.max_length 9"):
        texts(Words(["\U0001f534\U0001f535\U0001f7e2"]))


def test_an_encoder_that_the_stages_were_not_trained_for_is_not_composed(
    config: Config, clip: str, t5: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert Trainer(StageTask(config(run_dir=str(run), **{**TEXT, "text.encoder": t5, "text.max_length": 21}))).fit()
    with pytest.raises(ConfigError, match="^--text: max_length 21 is more than the 20 positions of the text encoder"):
        compose({"base": run}, text=clip)
    wide = tiny_clip(positions=77).config
    wide.hidden_size = 2 * WIDTH
    CLIPTextModel(wide).save_pretrained(tmp_path / "wide")
    tiny_clip_tokenizer().save_pretrained(tmp_path / "wide")
    with pytest.raises(ConfigError, match="the text encoder has width 32, base needs 16: pass --text"):
        compose({"base": run}, text=str(tmp_path / "wide"))
