"""Feature networks: pictures reach the output that is promised, prepared as the folder says, and are told apart."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from imagen.scores.features import FeatureNetwork, fingerprint, load_features

VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
TEXT = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"vocab_size": 30, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2},
}
SQUARE = {"height": 16, "width": 16}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def make(kind: str, folder: Path) -> Path:
    """A folder of a small drawn network with its image processor."""
    t, tower = transformers, {**VISION, "intermediate_size": 32}
    if kind == "clip":
        model = t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=tower, projection_dim=12))
        processor = t.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE)
    elif kind == "siglip":
        model = t.SiglipModel(t.SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=tower))
        processor = t.SiglipImageProcessorPil(size=SQUARE)
    elif kind == "dinov2":
        model = t.Dinov2Model(t.Dinov2Config(**VISION))
        processor = t.BitImageProcessorPil(size={"shortest_edge": 20}, crop_size=SQUARE)
    elif kind == "resnet":
        model = t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))
        processor = t.ViTImageProcessorPil(size={"height": 32, "width": 32})
    else:  # a classifier's checkpoint has no pooler
        model = (t.ViTForImageClassification if kind == "classifier" else t.ViTModel)(t.ViTConfig(**tower))
        processor = t.ViTImageProcessorPil(size=SQUARE)
    torch.manual_seed(5)
    for name, value in model.named_parameters():  # fresh ones are small, and biases 0
        if "logit" not in name:
            torch.nn.init.normal_(value, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    kinds = ("clip", "siglip", "dinov2", "vit", "classifier", "resnet")
    return {kind: make(kind, root / f"small-{kind}") for kind in kinds}


def picture(seed: int, size: tuple[int, int] = (24, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def prepared(image: Image.Image, mean: list[float], std: list[float], edge: int, square: bool) -> torch.Tensor:
    """One picture as its processor's settings say, by hand: resized (the short edge, or both), 16 x 16 cut, scaled."""
    short = min(image.size)
    width, height = (edge, edge) if square else (int(edge * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 16) // 2, (height - 16) // 2
    values = np.asarray(image.crop((left, top, left + 16, top + 16)), dtype=np.float32) / 255
    return torch.from_numpy((values - np.float32(mean)) / np.float32(std)).movedim(-1, 0)[None]


def by_hand(kind: str, folder: Path, image: Image.Image) -> torch.Tensor:
    with torch.no_grad():
        if kind == "clip":
            clip = transformers.CLIPModel.from_pretrained(folder).eval()
            pixels = prepared(image, MEAN, STD, 16, square=False)
            return clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        if kind == "siglip":
            siglip = transformers.SiglipModel.from_pretrained(folder).eval()
            return siglip.vision_model(pixel_values=prepared(image, [0.5] * 3, [0.5] * 3, 16, True)).pooler_output
        if kind == "dinov2":
            dino = transformers.Dinov2Model.from_pretrained(folder).eval()
            return dino(prepared(image, MEAN, STD, 20, square=False)).last_hidden_state[:, 0]
        vit = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=kind == "vit").eval()
        answer = vit(transformers.ViTImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt").pixel_values)
        return answer.pooler_output if kind == "vit" else answer.last_hidden_state.mean(1)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "vit", "classifier"])
def test_features_are_the_model_s_own(folders: dict[str, Path], kind: str) -> None:
    network = load_features(folders[kind])
    found = network.features([picture(1)])
    expected = by_hand(kind, folders[kind], picture(1)).double().numpy()
    assert found.dtype == np.float64
    assert found.shape == (1, network.dim)
    assert network.dim == (12 if kind == "clip" else 16)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "vit", "resnet"])
def test_a_picture_s_feature_does_not_depend_on_its_batch(folders: dict[str, Path], kind: str) -> None:
    network = load_features(folders[kind])
    pictures = [picture(at, (20 + 3 * at, 31)) for at in range(5)]
    together = network.features(iter(pictures), batch_size=4)
    alone = np.concatenate([network.features([one]) for one in pictures])
    assert together.shape == (5, network.dim)
    assert np.abs(together - alone).max() < 1e-5 * np.abs(alone).max()
    assert np.abs(together[0] - together[1]).max() > 1e-3 * np.abs(alone).max()


def test_a_convolutional_network_is_pooled_to_a_row(folders: dict[str, Path]) -> None:
    network = load_features(folders["resnet"])
    assert network.dim == 12
    assert network.preprocessing["output"] == "pooler_output"


def test_other_modes_are_seen_as_rgb(folders: dict[str, Path]) -> None:
    network, grey = load_features(folders["vit"]), picture(3).convert("L")
    assert np.array_equal(network.features([grey]), network.features([grey.convert("RGB")]))


def changed(folder: Path, file: str, **entries: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_dropout_is_off_and_no_gradient_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["vit"], tmp_path / "dropping")
    changed(folder, "config.json", hidden_dropout_prob=0.5)
    network = load_features(folder)
    assert np.array_equal(network.features([picture(1)]), load_features(folders["vit"]).features([picture(1)]))
    assert not network.embed([picture(1)]).requires_grad


def differing(one: FeatureNetwork, other: FeatureNetwork) -> set[str]:
    keys = one.preprocessing.keys() | other.preprocessing.keys()
    return {key for key in keys if one.preprocessing.get(key) != other.preprocessing.get(key)}


def test_the_preprocessing_tells_networks_apart(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = load_features(folders["vit"])
    assert json.loads(json.dumps(plain.preprocessing)) == plain.preprocessing
    assert {"network", "output", "size", "image_mean", "image_std", "resample"} <= plain.preprocessing.keys()

    copy = shutil.copytree(folders["vit"], tmp_path / "copy")
    changed(copy, "config.json", dtype="float16", architectures=["ViTForAnything"])
    assert not differing(plain, load_features(copy))
    changed(copy, "preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
    assert differing(plain, load_features(copy)) == {"image_mean"}
    changed(copy, "config.json", layer_norm_eps=1e-3)
    assert differing(plain, load_features(copy)) == {"image_mean", "network"}

    weights = shutil.copytree(folders["vit"], tmp_path / "weights")
    state = load_file(weights / "model.safetensors")
    state["layernorm.bias"] = state["layernorm.bias"] + 1e-6
    save_file(state, weights / "model.safetensors", metadata={"format": "pt"})
    assert differing(plain, load_features(weights)) == {"network"}


def test_what_a_tower_says_of_its_making_is_no_part_of_the_network(folders: dict[str, Path], tmp_path: Path) -> None:
    """A CLIP's config holds one for each tower."""
    copy = shutil.copytree(folders["clip"], tmp_path / "copy")
    tower = json.loads((copy / "config.json").read_text())["vision_config"]
    changed(copy, "config.json", vision_config={**tower, "dtype": "float16", "architectures": ["CLIPVisionModel"]})
    assert not differing(load_features(folders["clip"]), load_features(copy))
    changed(copy, "config.json", vision_config={**tower, "layer_norm_eps": 1e-3})
    assert differing(load_features(folders["clip"]), load_features(copy)) == {"network"}


def test_a_fingerprint_is_of_names_shapes_and_values() -> None:
    one, other = torch.arange(6.0), torch.arange(6.0) + 1
    states = [
        *({"a": one, "b": other}, {"a": other, "b": one}, {"a": one, "c": other}, {"a": one}),
        *({"a": one.reshape(2, 3), "b": other}, {"a": one, "b": other.view(torch.int32)}),
    ]
    assert len({fingerprint(state, {}) for state in states}) == len(states)
    assert fingerprint({"b": other, "a": one}, {}) == fingerprint(states[0], {}) != fingerprint(states[0], {"c": 1})


def test_a_pooler_that_was_drawn_is_no_part_of_the_network(folders: dict[str, Path]) -> None:
    """transformers draws what a checkpoint lacks, anew each time."""
    first, second = (load_features(folders["classifier"]) for _ in range(2))
    assert not differing(first, second)
    assert first.preprocessing["output"] == "mean of last_hidden_state"


def test_the_label_is_the_last_part_of_the_name(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_features(f"{folders['clip']}/").label == "small-clip"
    monkeypatch.chdir(folders["clip"])
    assert load_features(".").label == "small-clip"


def refused(name: str | Path, match: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load_features(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fid", "clean-fid"])
def test_no_other_network_is_called_fid(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    refused(shutil.copytree(folders["vit"], tmp_path / name), f"'{name}' is not the standard Inception.*rename")


def test_what_is_no_feature_network_is_refused_in_a_line(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(tmp_path / "nothing", "no feature network at .*nothing.*no such folder or file; give a folder")
    refused("nobody/nothing", "no feature network at 'nobody/nothing'.*give a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no feature network at .*empty")

    text = transformers.T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(text).save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", "is a t5, which looks at no pictures")

    bare = shutil.copytree(folders["vit"], tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    refused(bare, "bare' has no preprocessor_config.json.*save its image processor")
    refused(folders["vit"], "resize 'clean' is for the Inception's file", resize="clean")
    refused(folders["vit"], "device 'tpu0' is not there", device="tpu0")


@pytest.mark.skipif(bool(find_spec("timm") and find_spec("torchvision")), reason="both are installed")
@pytest.mark.parametrize("labels", [{}, {"label_names": ["a", "b"]}], ids=["of ImageNet", "own"])
def test_a_network_of_timm_says_what_it_needs(labels: dict[str, Any], tmp_path: Path) -> None:
    said = {"architecture": "resnet10t", "num_classes": 2, "pretrained_cfg": {"input_size": [3, 176, 176]}, **labels}
    (tmp_path / "config.json").write_text(json.dumps(said))
    refused(tmp_path, "is a network of timm, and needs .*: pip install timm torchvision")


def test_damaged_weights_are_refused_in_a_line(folders: dict[str, Path], tmp_path: Path) -> None:
    lacking = shutil.copytree(folders["vit"], tmp_path / "lacking")
    file, state = lacking / "model.safetensors", load_file(lacking / "model.safetensors")
    save_file({key: value for key, value in state.items() if key != "layernorm.bias"}, file, metadata={"format": "pt"})
    refused(lacking, "lacks layernorm.bias")

    save_file({**state, "layernorm.bias": torch.zeros(3)}, file, metadata={"format": "pt"})
    refused(lacking, "lacks layernorm.bias")

    cut = shutil.copytree(folders["vit"], tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(cut, "cut' is damaged")

    save_file({**state, "layernorm.bias": torch.full((16,), torch.nan)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not finite"):
        load_features(lacking).features([picture(1)])


def test_no_pictures_and_no_batch_are_refused(folders: dict[str, Path]) -> None:
    network = load_features(folders["vit"])
    with pytest.raises(ValueError, match="no pictures"):
        network.features([])
    with pytest.raises(ValueError, match="batch_size is 0"):
        network.features([picture(1)], batch_size=0)
