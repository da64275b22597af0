"""CLIP and SigLIP by folder: vectors are transformers' own, texts are read as each was trained to, and what is none."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from imagen.scores.encoders import DualEncoder, clip_score, longest_text, text_tokens
from tests.factories import save_clip, save_siglip

TEXTS = ["a red circle", "two small blue star circle", "a"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {"clip": save_clip(root / "clip"), "siglip": save_siglip(root / "siglip")}


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(8, 8), (20, 12), (9, 30)]
    made = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    return [*made, made[0].convert("L")]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_vectors_are_the_models_own_and_of_unit_length(kind: str, folders: dict[str, Path]) -> None:
    encoder, model = DualEncoder.load(folders[kind]), AutoModel.from_pretrained(folders[kind])
    shown = encoder.processor(images=[one.convert("RGB") for one in pictures()], return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    padding: Any = {"padding": "max_length", "max_length": 80} if kind == "siglip" else {"padding": True}
    tokens = tokenizer(TEXTS, return_tensors="pt", **padding)
    mask = {} if kind == "siglip" else {"attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        answer = model(input_ids=tokens["input_ids"], pixel_values=shown["pixel_values"], **mask)
    images, texts = encoder.images(pictures()), encoder.texts(TEXTS)
    torch.testing.assert_close(images, normalize(answer.image_embeds, dim=1))
    torch.testing.assert_close(texts, normalize(answer.text_embeds, dim=1))
    torch.testing.assert_close(images.norm(dim=1), torch.ones(4))
    assert images.shape == (4, encoder.dim)
    assert (encoder.dim, encoder.name, encoder.longest) == (8 if kind == "clip" else 16, kind, 80)
    assert encoder.scale == pytest.approx(model.logit_scale.exp().item())
    assert not encoder.model.training


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_batches_and_neighbours_change_nothing(kind: str, folders: dict[str, Path]) -> None:
    encoder = DualEncoder.load(folders[kind])
    torch.testing.assert_close(encoder.images(pictures(), batch_size=3), encoder.images(pictures()))
    alone = torch.cat([encoder.texts([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.texts(TEXTS, batch_size=2), alone)
    torch.testing.assert_close(encoder.texts(TEXTS), alone)


def test_tokens_are_padded_as_each_was_trained(folders: dict[str, Path]) -> None:
    for kind, length, names in (("clip", 7, {"input_ids", "attention_mask"}), ("siglip", 80, {"input_ids"})):
        encoder = DualEncoder.load(folders[kind])
        tokens = text_tokens(encoder.tokenizer, TEXTS, encoder.config)
        assert tokens.keys() == names
        assert tokens["input_ids"].shape == (3, length)
        assert longest_text(encoder.config) == 80


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_long_texts_are_cut_and_told(kind: str, folders: dict[str, Path]) -> None:
    encoder = DualEncoder.load(folders[kind])
    with pytest.warns(
        UserWarning, match=f"1 of 2 texts are longer than the 80 tokens that {kind} reads, and are cut"
    ) as w:
        found = encoder.texts(["red " * 100, "a red circle"])
    assert w[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found[1:], encoder.texts(["a red circle"]))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_text_that_just_fits_is_not_told(kind: str, folders: dict[str, Path]) -> None:
    encoder = DualEncoder.load(folders[kind])
    texts = ["a" + " a" * count for count in range(encoder.longest)]
    [full] = [text for text in texts if len(encoder.tokenizer(text)["input_ids"]) == encoder.longest]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.texts([full])
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than the 80 tokens"):
        encoder.texts([f"{full} a"])


def test_the_score_is_a_hundred_cosines_and_never_below_0() -> None:
    x = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]])
    y = torch.tensor([[0.8, 0.6], [0, -1], [0.6, 0.8]])
    assert clip_score(x, y).tolist() == pytest.approx([80, 0, 100])
    assert clip_score(x, y).dtype == torch.float64
    with pytest.raises(ValueError, match=r"vectors are \(3, 2\) and \(2, 2\); expected a text for each picture"):
        clip_score(x, y[:2])


def test_nothing_to_encode_is_refused(folders: dict[str, Path]) -> None:
    encoder = DualEncoder.load(folders["clip"])
    with pytest.raises(ValueError, match="no pictures for 'clip'"):
        encoder.images([])
    with pytest.raises(ValueError, match="no texts for 'clip'"):
        encoder.texts([])


def test_a_link_is_called_as_it_is(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "my-clip").symlink_to(folders["clip"])
    assert DualEncoder.load(tmp_path / "my-clip").name == "my-clip"
    assert DualEncoder.load(f"{tmp_path}/my-clip/").name == "my-clip"


def _lacking(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _reshaped(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _broken(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"] *= torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])


def _text_alone(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    model.text_model.save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps({**model.config.text_config.to_dict(), "model_type": "clip_text_model"})
    )


@pytest.mark.parametrize(("damage", "told"), [
    (_lacking, "its weights lack visual_projection.weight of the right shape, 1 in all"),
    (_reshaped, "its weights lack text_projection.weight"), (_cut, "is no encoder of pictures and texts"),
    (_broken, "vectors of texts that are not finite"), (_text_alone, "it holds a CLIPTextModel"),
    (lambda folder: (folder / "preprocessor_config.json").unlink(), "is no encoder"),
    (lambda folder: (folder / "config.json").write_text("{"), "is no encoder"),
    (shutil.rmtree, "is no encoder of pictures and texts that can be read"),
])  # fmt: skip
def test_what_is_no_encoder_is_told_in_a_line(
    damage: Callable[[Path], Any], told: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "copy")
    damage(folder)
    with pytest.raises(ValueError, match=told) as raised:
        DualEncoder.load(folder)
    assert "copy" in str(raised.value)
    assert "\n" not in str(raised.value)
