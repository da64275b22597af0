"""A CLIP through the trainer: it learns, goes on exactly, and leaves a folder of transformers'."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPTextModelWithProjection,
    SiglipConfig,
    SiglipModel,
)

from imagen.clip.config import ClipConfig, ContrastConfig
from imagen.clip.sheet import write_sheet
from imagen.clip.task import ContrastTask
from imagen.clip.towers import new_clip, train_tokenizer
from imagen.errors import ConfigError
from imagen.scores.encoders import DualEncoder
from imagen.training.trainer import Trainer
from tests.training.regression import lines, stop_after


def run(config: ContrastConfig) -> ContrastTask:
    task = ContrastTask(config)
    assert Trainer(task).fit()
    return task


def state(config: ContrastConfig) -> dict[str, torch.Tensor]:
    newest = sorted((Path(config.run_dir) / "state").iterdir())[-1]
    found = {f"{name} {k}": v for name in ("clip", "ema") for k, v in load_file(newest / f"{name}.safetensors").items()}
    moments = torch.load(newest / "optimizer.pt", weights_only=True)["state"]
    return found | {f"{number} {key}": value for number, one in moments.items() for key, value in one.items()}


def test_it_learns_to_pair_pictures_with_their_captions(make: Callable[..., ContrastConfig]) -> None:
    config = make(train={"steps": 150, "batch_size": 12}, validation={"every": 150}, ema={"decay": 0.9})
    run(config)
    told = lines(config)  # type: ignore[arg-type]
    measured = next(line for line in told if "val_loss" in line)
    assert {"val_loss", "val_image_to_text", "val_text_to_image"} < measured.keys()
    assert measured["val_image_to_text"] > 0.6
    assert measured["val_text_to_image"] > 0.6
    encoder = DualEncoder.load(Path(config.run_dir) / "model")
    folder = Path(config.validation.data.path or "")  # type: ignore[union-attr]
    with Image.open(folder / "2.png") as blue:
        cosines = encoder.images([blue]) @ encoder.texts([f"a {color} picture, shade 0" for color in ("red", "blue")]).T
    assert cosines[0, 1] > cosines[0, 0]
    with Image.open(Path(config.run_dir) / "samples" / "step-00000150.png") as sheet:
        assert sheet.size[0] > 6 * 128


@pytest.mark.parametrize("stop", [1, 5])
def test_resuming_is_exact(make: Callable[..., ContrastConfig], stop: int) -> None:
    whole, parts = make("whole"), make("parts")
    run(whole)
    assert not stop_after(Trainer(ContrastTask(parts)), stop).fit()
    for caption in Path(str(parts.data.path)).glob("*.txt"):  # of the same numbers of tokens, in the run's own alphabet
        caption.touch()
    run(parts)
    a, b = state(whole), state(parts)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert lines(whole) == lines(parts)  # type: ignore[arg-type]


def test_a_run_keeps_the_tokenizer_that_it_began_with(make: Callable[..., ContrastConfig]) -> None:
    config = make()
    stop_after(Trainer(ContrastTask(config)), 2).fit()
    before = AutoTokenizer.from_pretrained(Path(config.run_dir) / "start").get_vocab()
    for caption in Path(str(config.data.path)).glob("*.txt"):
        caption.write_text("quite another text")
    run(config)
    assert AutoTokenizer.from_pretrained(Path(config.run_dir) / "model").get_vocab() == before


def test_a_run_without_its_start_says_so(make: Callable[..., ContrastConfig]) -> None:
    config = make()
    stop_after(Trainer(ContrastTask(config)), 2).fit()
    (Path(config.run_dir) / "start").rename(Path(config.run_dir) / "gone")
    with pytest.raises(ConfigError, match="which the run began from"):
        Trainer(ContrastTask(config))


def test_what_is_left_is_the_average_as_transformers_keep_it(make: Callable[..., ContrastConfig]) -> None:
    config = make()
    run(config)
    folder = Path(config.run_dir) / "model"
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert CLIPTextModelWithProjection.from_pretrained(folder).text_projection.out_features == config.clip.projection
    kept = state(config)
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[f"ema clip.{name}"])
    assert not torch.equal(kept["clip clip.visual_projection.weight"], kept["ema clip.visual_projection.weight"])
    inputs = processor(text=["a red picture"], images=Image.new("RGB", (16, 16), "red"), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs)
    encoder = DualEncoder.load(folder)
    torch.testing.assert_close(encoder.images([Image.new("RGB", (16, 16), "red")]), expected.image_embeds)
    torch.testing.assert_close(encoder.texts(["A  red picture"]), expected.text_embeds)


def test_what_is_measured_is_the_contrast_of_all_held_out_pairs(make: Callable[..., ContrastConfig]) -> None:
    config = make(validation={"batch_size": 5})
    task = run(config)
    folder = Path(config.run_dir) / "model"
    encoder, held_out = DualEncoder.load(folder), Path(str(config.validation.data.path))  # type: ignore[union-attr]
    names = sorted(held_out.glob("*.png"))
    captions = [name.with_suffix(".txt").read_text() for name in names]
    images = encoder.images([Image.open(name) for name in names]).double()
    logits = encoder.scale * images @ encoder.texts(captions).double().T
    both = [-logits.log_softmax(dim=axis).diagonal().mean() for axis in (0, 1)]
    told = [line for line in lines(config) if "val_loss" in line][-1]  # type: ignore[arg-type]
    assert told["val_loss"] == pytest.approx((sum(both) / 2).item(), rel=1e-5)
    assert told["val_image_to_text"] == pytest.approx((logits.argmax(1) == torch.arange(12)).double().mean().item())
    assert told["val_text_to_image"] == pytest.approx((logits.argmax(0) == torch.arange(12)).double().mean().item())
    assert task.module.training


def test_the_scale_begins_at_the_papers_and_ends_at_a_hundred(make: Callable[..., ContrastConfig]) -> None:
    task = ContrastTask(make())
    Trainer(task)
    assert task.module.clip.logit_scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-4)
    config = make("steep", optim={"lr": 1.0, "warmup": 0, "clip_norm": None})
    task = ContrastTask(config)
    trainer = Trainer(task)
    with torch.no_grad():
        task.module.clip.logit_scale.fill_(6.0)
    assert trainer.fit()
    assert AutoModel.from_pretrained(Path(config.run_dir) / "model").logit_scale.exp() <= 100 * (1 + 1e-6)


def test_pictures_are_shown_as_the_processor_prepares_them(make: Callable[..., ContrastConfig]) -> None:
    task = ContrastTask(make())
    loaded = Trainer(task)
    sample: Any = loaded.source[3]  # type: ignore[index]
    raw = {"image": sample.image[None], "caption": [sample.caption]}
    batch = task.batch(task._tokenized(raw), 0, range(1))
    with Image.open(Path(str(task.config.data.path)) / sample.key) as stored:
        expected = task.clip.processor(images=[stored], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch.images, expected, atol=1e-5, rtol=0)


def test_it_goes_on_from_a_siglip_with_its_own_tokens(make: Callable[..., ContrastConfig], tmp_path: Path) -> None:
    begun = make("first")
    run(begun)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    first = DualEncoder.load(Path(begun.run_dir) / "model")
    words = {**small, "vocab_size": len(first.tokenizer), "max_position_embeddings": 12, "projection_size": 16}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=words, vision_config={**small, "image_size": 16, "patch_size": 8}))
    for part in (model, first.tokenizer, first.processor):
        part.save_pretrained(tmp_path / "siglip")
    config = replace(make("second"), clip=ClipConfig(init_from=str(tmp_path / "siglip")))
    task = run(config)
    left = AutoModel.from_pretrained(Path(config.run_dir) / "model")
    assert type(left) is SiglipModel
    assert not torch.equal(left.text_model.head.weight, model.text_model.head.weight)
    raw = task._tokenized({"caption": ["a red picture", "a"]})
    assert raw["tokens"].keys() == {"input_ids"}
    assert raw["tokens"]["input_ids"].shape == (2, 12)
    shown = task.module(torch.zeros(2, 3, 16, 16), **raw["tokens"])
    torch.testing.assert_close(shown[0], normalize(shown[0], dim=1))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": {"accumulation": 2}}, "gradient_checkpointing"),
        ({"train": {"batch_size": 1}}, "needs another"),
        ({"data": {"crop": 8}}, "data.crop 8"),
        ({"clip": {"patch_size": 5}}, "clip.patch_size 5"),
        ({"clip": {"init_from": "x", "projection": 9}}, "clip.image_size|clip.projection"),
        ({"clip": {"max_length": 2}}, "clip.max_length 2"),
    ],
)
def test_what_cannot_be_is_one_line(make: Callable[..., ContrastConfig], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as found:
        make(**changes)
    assert "\n" not in str(found.value)


def test_checkpointing_changes_no_number(make: Callable[..., ContrastConfig]) -> None:
    plain, saving = make("plain"), make("saving", clip={"gradient_checkpointing": True})
    run(plain)
    run(saving)
    a, b = state(plain), state(saving)
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)


def test_captions_that_say_nothing_are_told(make: Callable[..., ContrastConfig]) -> None:
    config = make()
    for caption in Path(str(config.data.path)).glob("*.txt"):
        caption.write_text(" ")
    with pytest.raises(ConfigError, match="caption"):
        Trainer(ContrastTask(config))
    assert not (Path(config.run_dir) / "state").exists()


def test_new_weights_are_those_of_the_seed(make: Callable[..., ContrastConfig]) -> None:
    clip = make().clip
    tokenizer = train_tokenizer(["a red picture", "a blue picture"], clip)
    first, again, other = (new_clip(clip, tokenizer, seed).model.state_dict() for seed in (3, 3, 4))
    name = "visual_projection.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_partners_with_the_same_caption_count(make: Callable[..., ContrastConfig]) -> None:
    config = make()
    for caption in Path(str(config.validation.data.path)).glob("*.txt"):  # type: ignore[union-attr]
        caption.write_text("a picture")
    run(config)
    told = next(line for line in lines(config) if "val_loss" in line)  # type: ignore[arg-type]
    assert (told["val_image_to_text"], told["val_text_to_image"]) == (1.0, 1.0)


def test_a_sheet_tells_what_each_picture_picks(
    make: Callable[..., ContrastConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[list[str], list[str]]] = []

    def write(path: Path, images: torch.Tensor, captions: list[str], picked: list[str]) -> None:
        told.append((captions, picked))
        write_sheet(path, images, captions, picked)

    monkeypatch.setattr("imagen.clip.task.write_sheet", write)
    config = make()
    run(config)
    [(captions, picked)] = told
    encoder = DualEncoder.load(Path(config.run_dir) / "model")
    files = Path(str(config.validation.data.path)).glob("*.txt")  # type: ignore[union-attr]
    pictures = {file.read_text(): Image.open(file.with_suffix(".png")) for file in files}
    cosines = encoder.images([pictures[caption] for caption in captions]) @ encoder.texts(captions).T
    assert picked == [captions[row] for row in cosines.argmax(dim=1)]


def test_a_sheet_tells_the_wrong_caption_before_the_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("imagen.clip.sheet.captioned", lambda picture, text: told.append(text) or picture)
    write_sheet(tmp_path / "sheet.png", torch.zeros(2, 3, 16, 16), ["a cat", "a dog"], ["a cat", "a cow"])
    assert told == ["a cat", "NO: a cow (it is: a dog)"]
