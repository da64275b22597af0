"""Weights that are no plain safetensors: pickles, and networks that torchao quantised. Asked for, they are loaded.

And the order in which all networks are offloaded.
"""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PipelineQuantizationConfig, QuantoConfig
from safetensors.torch import load_file, save_file

from imagen import ImagenPipeline
from imagen.cascade.parts import is_ours, load_parts
from imagen.stages.folder import check_complete
from tests.convert.released import safety_parts
from tests.factories import sample, tiny_pipeline

BF16 = torch.bfloat16


def picture(pipe: ImagenPipeline, **options: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    images: torch.Tensor = sample(pipe, "a red circle", **options).images
    return images


# --- pickles ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    tiny_pipeline(**safety_parts()).save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "base_unet" / "diffusion_pytorch_model.bin").is_file()
    assert not list(tmp_path.glob("*_unet/*.safetensors"))
    return tmp_path


@pytest.mark.parametrize("asked", [False, None])
def test_pickled_weights_are_loaded_on_request(pickled: Path, asked: bool | None) -> None:
    pipe = ImagenPipeline.from_pretrained(pickled, use_safetensors=asked)
    assert torch.equal(picture(pipe), picture(tiny_pipeline()))
    torch.save(load_file(pickled / "text_encoder" / "model.safetensors"), pickled / "text_encoder/pytorch_model.bin")
    (pickled / "text_encoder" / "model.safetensors").unlink()  # as transformers saved it before it knew safetensors
    again = ImagenPipeline.from_pretrained(pickled, use_safetensors=asked)
    assert torch.equal(picture(again), picture(pipe))
    pipe.save_pretrained(pickled / "safe")
    assert torch.equal(picture(ImagenPipeline.from_pretrained(pickled / "safe")), picture(pipe))


def test_without_a_request_a_line_says_what_to_do(pickled: Path) -> None:
    with pytest.raises(ValueError, match=r"base_unet/ holds pickled weights \(\*\.bin\) alone") as told:
        ImagenPipeline.from_pretrained(pickled)
    assert "use_safetensors=False" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_pickle_that_lacks_a_tensor_is_refused_and_not_filled_with_anything(pickled: Path) -> None:
    path = pickled / "sr256_unet" / "diffusion_pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    lost = sorted(tensors)[0]
    torch.save({name: value for name, value in tensors.items() if name != lost}, path)
    with pytest.raises(ValueError, match=f"sr256_unet lacks 1 tensors of the network .{lost}, "):
        ImagenPipeline.from_pretrained(pickled, use_safetensors=False)


def test_pickles_are_fetched_for_who_asks_for_them_alone(pickled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, list[str]]] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda _, **options: asked.append(options) or str(pickled))
    with pytest.raises(ValueError, match="pickled weights"):
        ImagenPipeline.from_pretrained("owner/name")
    ImagenPipeline.from_pretrained("owner/name", use_safetensors=False)

    def fetched(options: dict[str, list[str]], path: str) -> bool:
        allowed, ignored = (
            any(fnmatch.fnmatch(path, pattern) for pattern in options[f"{kind}_patterns"])
            for kind in ("allow", "ignore")
        )
        return allowed and not ignored

    weights = ["base_unet/diffusion_pytorch_model.bin", "base_unet/diffusion_pytorch_model.fp16.bin"]
    assert [[fetched(options, path) for path in weights] for options in asked] == [[False, False], [True, False]]


# --- quantised --------------------------------------------------------------------------------------------------------


def flattened(names: list[str], split: dict[str, list[str]]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata as torchao writes them, those of ``split`` in parts."""
    tensors, notes = {}, {"tensor_names": json.dumps(names)}
    for name in names:
        module, leaf = name.rsplit(".", 1)
        parts = split.get(name)
        notes[name] = json.dumps({"_type": "Int8Tensor", "_tensor_data_names": parts} if parts else {"_type": "Tensor"})
        held = [f"{module}._{leaf}_{part}" for part in parts] if parts else [name]
        tensors.update({key: torch.zeros(1) for key in held})
    return tensors, notes


def test_a_tensor_in_parts_is_there_when_all_of_them_are_in_whichever_files(tmp_path: Path) -> None:
    names = ["a.weight", "a.bias", "b.c.weight"]
    tensors, notes = flattened(names, {"a.weight": ["qdata", "scale"], "b.c.weight": ["qdata"]})
    assert set(tensors) == {"a._weight_qdata", "a._weight_scale", "a.bias", "b.c._weight_qdata"}
    for number, keys in enumerate((["a._weight_qdata", "a.bias"], ["a._weight_scale", "b.c._weight_qdata"])):
        save_file({key: tensors[key] for key in keys}, tmp_path / f"{number}.safetensors", notes)
    check_complete(tmp_path, names)
    mine = {key: notes[key] for key in names[2:]} | {"tensor_names": json.dumps(names[2:])}
    save_file({"b.c._weight_qdata": tensors["b.c._weight_qdata"]}, tmp_path / "1.safetensors", mine)  # of it alone
    rest = {key: value for key, value in tensors.items() if not key.startswith("b.c.")}
    save_file(rest, tmp_path / "0.safetensors", notes)
    check_complete(tmp_path, names)
    for lost, told in (("a._weight_scale", "a.weight"), ("a.bias", "a.bias"), ("b.c._weight_qdata", "b.c.weight")):
        folder = tmp_path / lost
        folder.mkdir()
        save_file({key: value for key, value in tensors.items() if key != lost}, folder / "w.safetensors", notes)
        with pytest.raises(ValueError, match=rf"lacks 1 tensors of the network \({told}, "):
            check_complete(folder, names)


@pytest.mark.parametrize(
    ("config", "quantised"),
    [
        ({"quant_mapping": {"base_unet": QuantoConfig("int8")}}, ["base_unet"]),
        ({"quant_mapping": {"text_encoder": QuantoConfig("int8")}}, ["text_encoder"]),
    ],
)
def test_what_is_not_quantised_is_loaded_and_checked_as_ever(config: dict[str, Any], quantised: list[str]) -> None:
    options = {"quantization_config": PipelineQuantizationConfig(**config)}
    parts = ["base_unet", "sr256_unet", "text_encoder", "safety_checker"]
    assert [part for part in parts if not is_ours(part, options)] == quantised


def test_a_backend_for_all_or_for_those_it_names() -> None:
    class Backend:
        quant_mapping = None
        components_to_quantize: list[str] | None = None

    config = Backend()
    assert not is_ours("base_unet", {"quantization_config": config})
    config.components_to_quantize = ["base_unet"]
    assert not is_ours("base_unet", {"quantization_config": config})
    assert is_ours("sr256_unet", {"quantization_config": config})
    assert not is_ours("sr256_unet", {"quantization_config": config, "device_map": "balanced"})
    assert not is_ours("sr256_unet", {"quantization_config": config, "sr256_unet": None})


def test_a_checker_that_diffusers_cannot_load_is_loaded_beside_a_quantised_network(tmp_path: Path) -> None:
    tiny_pipeline(**safety_parts()).save_pretrained(tmp_path)
    config = PipelineQuantizationConfig(quant_mapping={"base_unet": QuantoConfig("int8")})
    loaded = load_parts(tmp_path, {"use_safetensors": True, "quantization_config": config})
    assert loaded.keys() == {"text_encoder", "safety_checker"}


def eight_bits(*names: str) -> PipelineQuantizationConfig:
    """torchao's 8-bit weights for networks of a pipeline. Skips where torchao is not installed."""
    quantization = pytest.importorskip("torchao.quantization")
    from diffusers import TorchAoConfig

    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    return PipelineQuantizationConfig(quant_mapping=dict.fromkeys(names, config))


@pytest.mark.parametrize("safe", [True, False])
def test_networks_that_torchao_quantised_are_saved_and_loaded(tmp_path: Path, safe: bool) -> None:
    config = eight_bits("base_unet", "sr256_unet")
    tiny_pipeline(**safety_parts()).save_pretrained(tmp_path / "plain")
    pipe = ImagenPipeline.from_pretrained(tmp_path / "plain", dtype=BF16, quantization_config=config)
    assert type(pipe.base_unet.get_parameter("time_embedding.linear_1.weight").data).__name__ == "Int8Tensor"
    assert pipe.safety_checker is not None
    before = picture(pipe)
    exact = picture(ImagenPipeline.from_pretrained(tmp_path / "plain", dtype=BF16))
    assert 0 < (before - exact).abs().mean() < 0.02
    pipe.save_pretrained(tmp_path / "small", safe_serialization=safe)
    if not safe:
        with pytest.raises(ValueError, match="use_safetensors=False"):
            ImagenPipeline.from_pretrained(tmp_path / "small", dtype=BF16)
    again = ImagenPipeline.from_pretrained(tmp_path / "small", dtype=BF16, use_safetensors=safe)
    assert type(again.base_unet.get_parameter("time_embedding.linear_1.weight").data).__name__ == "Int8Tensor"
    assert torch.equal(picture(again), before)
    mixed = ImagenPipeline.from_pretrained(tmp_path / "small", use_safetensors=safe)  # the others in float32
    assert (mixed.sr1024_unet.dtype, mixed.text_encoder.dtype) == (torch.float32, torch.float32)
    assert (picture(mixed) - before).abs().mean() < 0.02


def test_a_quantised_network_that_lacks_a_part_of_a_tensor_is_refused(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "plain")
    config = eight_bits("base_unet")
    pipe = ImagenPipeline.from_pretrained(tmp_path / "plain", dtype=BF16, quantization_config=config)
    pipe.save_pretrained(tmp_path / "small")
    from safetensors import safe_open

    path = tmp_path / "small" / "base_unet" / "diffusion_pytorch_model.safetensors"
    with safe_open(path, framework="pt") as file:
        notes = file.metadata()
    tensors = load_file(path)
    del tensors["time_embedding.linear_1._weight_scale"]
    save_file(tensors, path, notes)
    with pytest.raises(ValueError, match=r"base_unet lacks 1 tensors of the network \(time_embedding.linear_1.weight"):
        ImagenPipeline.from_pretrained(tmp_path / "small", dtype=BF16)


# --- offload ----------------------------------------------------------------------------------------------------------


def test_offload_order_names_every_network() -> None:
    networks = {f"{slot}_{kind}" for slot in ("base", "sr256", "sr1024") for kind in ("unet", "weak_unet")}
    assert set(ImagenPipeline.model_cpu_offload_seq.split("->")) == {"text_encoder", *networks}
