"""The parts of a saved pipeline that are loaded here get what diffusers gives to those that it loads."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import imagen
from imagen import ImagenPipeline
from imagen.cascade.parts import check_parts, dtype_of, fast_dtype, load_checker, load_encoder, load_parts, named_dtype
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.stages.spec import SLOTS
from tests.convert.released import safety_parts
from tests.factories import SIZES, tiny_base, tiny_pipeline, tiny_sr, tiny_stages, tiny_text_encoder, tiny_tokenizer

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    parts = dict.fromkeys(("sr256_unet", "sr256_scheduler", "sr1024_unet", "sr1024_scheduler"))
    tiny_pipeline(base_weak_unet=tiny_base(9), **parts, **safety_parts()).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, [F32, F32, F32]),
        (BF16, [BF16, BF16, BF16]),
        ({"default": BF16, "text_encoder": F32}, [F32, BF16, BF16]),
        ({"default": BF16, "safety_checker": F16}, [BF16, F16, BF16]),
        ({"text_encoder": BF16}, [BF16, F32, F32]),
    ],
)
def test_a_dtype_for_each_part_and_a_default(saved: Path, asked: Any, expected: list[torch.dtype]) -> None:
    pipe = ImagenPipeline.from_pretrained(saved, dtype=asked)
    assert [pipe.text_encoder.dtype, pipe.safety_checker.dtype, pipe.base_unet.dtype] == expected


def test_what_is_loaded_here_is_what_was_saved_frozen_and_at_rest(saved: Path) -> None:
    parts = load_parts(saved, {"use_safetensors": True})
    assert parts.keys() == {"text_encoder", "safety_checker"}
    before = tiny_pipeline(**safety_parts())
    for name, part in parts.items():
        states = part.state_dict()
        assert all(torch.equal(value, states[key]) for key, value in getattr(before, name).state_dict().items())
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert not part.training


@pytest.mark.parametrize("option", ["device_map", "quantization_config"])
def test_placing_and_quantising_are_left_to_diffusers(saved: Path, option: str) -> None:
    assert load_parts(saved, {"use_safetensors": True, option: "auto"}) == {}


@pytest.mark.parametrize("name", ["text_encoder", "safety_checker"])
def test_a_part_that_is_given_or_of_a_class_unknown_here_is_not_loaded(copy: Path, name: str) -> None:
    others = {"text_encoder", "safety_checker"} - {name}
    assert load_parts(copy, {"use_safetensors": True, name: None}).keys() == others
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, name: ["transformers", "BertModel"]}))
    assert load_parts(copy, {"use_safetensors": True}).keys() == others


@pytest.mark.parametrize(("name", "load"), [("text_encoder", load_encoder), ("safety_checker", load_checker)])
def test_the_variant_asked_for_is_taken_where_there_is_one(copy: Path, name: str, load: Any) -> None:
    place = copy / name
    plain = load_file(place / "model.safetensors")
    save_file({key: value * 2 for key, value in plain.items()}, place / "model.fp16.safetensors", {"format": "pt"})
    key = max(plain, key=lambda name: plain[name].numel())
    for asked, times in ({}, 1), ({"variant": None}, 1), ({"variant": "bf16"}, 1), ({"variant": "fp16"}, 2):
        loaded = load(place, {"use_safetensors": True, **asked}).state_dict()
        assert torch.equal(loaded[key], plain[key] * times), asked


def test_a_checker_in_shards_with_an_older_file_s_count_is_loaded_whole(copy: Path) -> None:
    place = copy / "safety_checker"
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names = sorted(tensors)
    counted = {"vision_model.vision_model.embeddings.position_ids": torch.arange(5)}
    for number, part in enumerate((names[:3], names[3:]), 1):
        values = {name: tensors[name] for name in part} | (counted if number == 2 else {})
        save_file(values, place / f"model-0000{number}-of-00002.safetensors")
    loaded = load_checker(place, {}).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in tensors.items())
    (place / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"^model folder '.*copy': safety_checker does not load: .*Missing key"
    ) as told:
        load_checker(place, {})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("shards", [1, 2])
def test_plain_weights_of_a_checker_are_taken_whatever_lies_beside_them(copy: Path, shards: int) -> None:
    place = copy / "safety_checker"
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names = sorted(tensors)
    for suffix, times in ("", 1), (".fp16", 2):
        for number in range(shards):
            values = {name: tensors[name] * times for name in names[number::shards]}
            stem = "model" + f"-0000{number + 1}-of-0000{shards}" * (shards > 1)
            save_file(values, place / f"{stem}{suffix}.safetensors")
            save_file(values, place / f"model{suffix}{stem.removeprefix('model')}.safetensors")
    loaded = load_checker(place, {}).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in tensors.items())


def test_weights_of_another_dtype_are_taken_where_there_are_no_plain_ones(copy: Path) -> None:
    place = copy / "safety_checker"
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").rename(place / "model.fp16.safetensors")
    loaded = load_checker(place, {}).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in tensors.items())


def test_pickled_weights_are_read_by_who_asks_for_them_alone(copy: Path) -> None:
    place = copy / "text_encoder"
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_encoder(place, {"use_safetensors": True})
    assert load_encoder(place, {"use_safetensors": False}).dtype == F32


@pytest.mark.parametrize("name", ["base_unet", "base_weak_unet"])
def test_a_network_that_lacks_a_tensor_is_refused_unless_it_was_given_or_is_not_ours_to_load(
    copy: Path, name: str
) -> None:
    pipe = ImagenPipeline.from_pretrained(copy)
    path = copy / name / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    lost = sorted(tensors)[-1]
    save_file({key: value for key, value in tensors.items() if key != lost}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{name} lacks 1 tensors of the network .{lost}, "):
        ImagenPipeline.from_pretrained(copy)
    networks = ["base_unet", "base_weak_unet", "sr256_unet"]  # the last is not there
    with pytest.raises(ValueError, match=f"{name} lacks 1 tensors"):
        check_parts(pipe, copy, {}, networks)
    for options in ({name: getattr(pipe, name)}, {"device_map": "auto"}, {"quantization_config": "int8"}):
        check_parts(pipe, copy, options, networks)


@pytest.mark.parametrize(("name", "dtype"), [("float16", F16), ("double", torch.float64), (F16, F16), (None, None)])
def test_a_dtype_goes_by_its_name(name: Any, dtype: Any) -> None:
    assert named_dtype(name) is dtype


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("card", [None, True, False], ids=["no card", "Ampere", "Turing"])
def test_auto_is_bfloat16_where_that_is_fast(amx: bool, card: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turing computes it as float32, which torch counts as support unless it is asked not to."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or card)
    on_cpu = torch.bfloat16 if amx else F32
    expected = on_cpu if card is None else torch.bfloat16 if card else F32
    assert fast_dtype() is named_dtype("auto") is expected
    assert named_dtype({"text_encoder": "auto", "default": "float16"}) == {"text_encoder": expected, "default": F16}
    assert fast_dtype("cpu") is on_cpu
    assert fast_dtype("meta") is F32


@pytest.mark.parametrize("name", ["int8", "bool", "nn", "float8", "torch.float16"])
def test_a_name_of_no_floating_dtype_is_told(name: str) -> None:
    with pytest.raises(ValueError, match=f"dtype is '{name}'; expected float32, bfloat16, float16, float64 or auto"):
        named_dtype(name)


def test_a_part_that_a_mapping_does_not_name_is_in_float32() -> None:
    assert dtype_of("safety_checker", {"dtype": {"text_encoder": F16}}) is F32


def test_every_part_and_setting_of_a_pipeline_is_found_under_its_name() -> None:
    networks = {"base_unet": tiny_base(), "sr256_unet": tiny_sr(2), "sr1024_unet": tiny_sr(3)}
    networks |= {"base_weak_unet": tiny_base(4), "sr256_weak_unet": tiny_sr(5), "sr1024_weak_unet": tiny_sr(6)}
    schedulers = {f"{slot}_scheduler": make_scheduler("ddim", CosineSchedule(), "sample") for slot in SLOTS}
    given = {"tokenizer": tiny_tokenizer(), "text_encoder": tiny_text_encoder(), **networks, **schedulers}
    given |= safety_parts()
    stages, reading = tiny_stages(), {"padding": "visible", "null": "empty", "lowercase": True}
    conditions = {"label": {"names": ["a", "b"]}, "mask": {}}
    pipe = ImagenPipeline(**given, stages=stages, max_length=9, text=reading, conditions=conditions)
    assert pipe.components.keys() == given.keys()
    assert all(getattr(pipe, name) is part for name, part in given.items())
    assert (pipe.config["max_length"], pipe.config["text"], pipe.config["conditions"]) == (9, reading, conditions)
    assert {slot: pipe.config["stages"][slot]["size"] for slot in SLOTS} == dict(zip(SLOTS, SIZES, strict=True))
    for slot, stage in pipe._stages().items():
        parts = (stage.unet, stage.scheduler, stage.weak)
        assert all(
            part is given[f"{slot}_{kind}"]
            for part, kind in zip(parts, ("unet", "scheduler", "weak_unet"), strict=True)
        )
    offloaded = set(ImagenPipeline.model_cpu_offload_seq.split("->"))
    assert offloaded == {"text_encoder", *networks}, "the small parts stay where they are"
    assert set(ImagenPipeline._exclude_from_cpu_offload) == safety_parts().keys()
    assert set(ImagenPipeline._optional_components) == given.keys()


def test_the_package_holds_its_pipeline_and_no_other_name() -> None:
    assert imagen.ImagenPipeline is ImagenPipeline
    with pytest.raises(AttributeError, match="module 'imagen' has no attribute 'Pipeline'"):
        _ = imagen.Pipeline
