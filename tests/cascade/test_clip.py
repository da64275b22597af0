"""A pipeline whose text encoder is a CLIP's: it reads, is saved, comes back and is refused as with a T5."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from imagen import ImagenPipeline
from imagen.text.encoder import encode, load_text_encoder
from tests.factories import Calls, sample, tiny_clip, tiny_clip_tokenizer, tiny_pipeline, tiny_whole_clip

POSITIONS = 20
LONG = "a red circle " * 7  # 23 tokens


def clip_pipeline(**changes: Any) -> ImagenPipeline:
    """The tiny cascade that reads with a tiny CLIP."""
    given = {"tokenizer": tiny_clip_tokenizer(), "text_encoder": tiny_clip(), "max_length": POSITIONS}
    return tiny_pipeline(**{**given, **changes})


def test_the_networks_read_what_the_encoder_says() -> None:
    pipe = clip_pipeline()
    with Calls(pipe.base_unet) as calls:
        sample(pipe, ["A red CIRCLE", "two blue star"], size=16)
    expected, mask = encode(tiny_clip_tokenizer(), tiny_clip(), ["a red circle", "two blue star"], POSITIONS)
    assert mask.all()
    (text,) = calls.texts
    torch.testing.assert_close(text[:2], expected)
    assert text[2:].abs().max() == 0, "the null text is zero"


@pytest.mark.parametrize("reading", [{}, {"padding": "visible"}, {"null": "empty"}])
def test_a_picture_does_not_depend_on_the_prompts_beside_it(reading: dict[str, str]) -> None:
    pipe = clip_pipeline(text=reading)
    alone = sample(pipe, "a red circle", size=16).images
    both = sample(pipe, ["a red circle", "a small blue star two green circle"], size=16).images
    torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-4)
    if reading:
        plain = sample(clip_pipeline(), "a red circle", size=16).images
        assert (alone - plain).abs().max() > 1e-3, f"{reading} has no effect"


@pytest.mark.parametrize("whole", [False, True])
def test_saved_and_loaded_pictures_are_identical(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Also of an encoder that was taken out of a whole CLIP."""
    if whole:
        tiny_whole_clip().save_pretrained(tmp_path / "clip")
        tiny_clip_tokenizer().save_pretrained(tmp_path / "clip")
        tokenizer, encoder = load_text_encoder(tmp_path / "clip")
        pipe = clip_pipeline(tokenizer=tokenizer, text_encoder=encoder)
    else:
        pipe = clip_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert index["max_length"] == POSITIONS
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    loaded = ImagenPipeline.from_pretrained(tmp_path / "model")
    assert not [record.message for record in caplog.records if "xpected" in record.message]
    assert type(loaded.text_encoder) is CLIPTextModel
    assert type(loaded.tokenizer) is CLIPTokenizer
    assert not any(weight.requires_grad for weight in loaded.text_encoder.parameters())
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(sample(loaded, "a red circle").images, sample(pipe, "a red circle").images)


def test_dtype_and_variant(tmp_path: Path) -> None:
    pipe = clip_pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16")
    half = ImagenPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.bfloat16)
    assert half.text_encoder.dtype == torch.bfloat16
    assert half.reader.encode("a red circle")[0].dtype == torch.float32
    exact = ImagenPipeline.from_pretrained(tmp_path, variant="fp16")
    ours = pipe.text_encoder.state_dict()
    assert all(torch.equal(value, ours[name].float()) for name, value in exact.text_encoder.state_dict().items())


def test_offloading_changes_nothing() -> None:
    """As far as a machine without an accelerator can tell; layer by layer, the weights rest on no device at all."""
    pipe = clip_pipeline()
    expected = sample(pipe, "a red circle", size=16).images
    cpu_offload(pipe.text_encoder, torch.device("cpu"))
    assert pipe.text_encoder.device.type == "meta"
    torch.testing.assert_close(sample(pipe, "a red circle", size=16).images, expected, atol=1e-5, rtol=0)
    pipe = clip_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        torch.testing.assert_close(sample(pipe, "a red circle", size=16).images, expected, atol=1e-5, rtol=0)


def test_what_it_cannot_read_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^max_length 128 is more than the 20 positions of the text encoder: set 20$"):
        ImagenPipeline(tiny_clip_tokenizer(), tiny_clip())
    with pytest.raises(ValueError, match="has 23 tokens and this model reads 20; .* its encoder has no more positions"):
        sample(clip_pipeline(), LONG)
    with pytest.raises(ValueError, match="reads 9; .* its encoder can read 20: raise max_length if the networks"):
        sample(clip_pipeline(max_length=9), LONG)
    with pytest.raises(ValueError, match="reads 9; .* T5 itself has no limit: raise max_length if the networks"):
        sample(tiny_pipeline(max_length=9), LONG)
    clip_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="max_length 20 is more than the 8 positions"):
        ImagenPipeline.from_pretrained(tmp_path, text_encoder=tiny_clip(positions=8))


def test_a_damaged_encoder_is_refused(tmp_path: Path) -> None:
    clip_pipeline().save_pretrained(tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    kept = weights.pop("final_layer_norm.weight")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks final_layer_norm.weight \(1 in all\)"):
        ImagenPipeline.from_pretrained(tmp_path)
    small = weights["embeddings.token_embedding.weight"][:-1].clone()
    save_file({**weights, "final_layer_norm.weight": kept, "embeddings.token_embedding.weight": small}, path)
    config = json.loads((tmp_path / "text_encoder" / "config.json").read_text())
    config["vocab_size"] -= 1
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has ids up to (\d+), its encoder \1 embeddings: save the two together"):
        ImagenPipeline.from_pretrained(tmp_path)
