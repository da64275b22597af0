"""Folders of models and stages: which names are looked for where, what must lie there, and the parts loaded from it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from imagen import ImagenPipeline
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.pipeline import HUB_ARGUMENTS
from imagen.stages.folder import INDEX, check_complete, find_folder, read_model
from imagen.stages.load import load_network, load_scheduler
from imagen.stages.spec import FORMAT_VERSION, StageDefaults, check_steps, check_version, read_stages
from tests.factories import tiny_base

SIZES = {"size": 16, "lowres_size": 8}

# --- ranges: the nearest legal value and the nearest that is not ------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "legal", "wrong"),
    [
        ("size", [8, 9, 10**6], [0, 7, -16]),  # of a stage that starts from 8 px
        ("lowres_size", [1, 15, 16], [0, 17]),
        ("num_inference_steps", [1, 1000, "smart27"], [0, "smart28", 1.0]),
        ("guidance_scale", [0, 1e9], [-1e-9, float("inf"), "5"]),
        ("threshold", ["none", "static"], ["nothing", None]),
        ("threshold_p", [1e-6, 1.0], [9e-7, 1.0 + 1e-9]),
        ("threshold_cap", [None, 1.0, 50], [0.999, float("nan")]),
        ("aug_level", [0, 1], [-1e-9, 1 + 1e-9]),
        ("lowres_consistency", [0, 1, 16], [-1, 1.5]),
        ("aug_space", ["lowres", "upsampled"], ["pixels"]),
        ("aug_schedule", [{}, {"kind": "cosine", "s": 0.1, "beta_end": 1}], [{"cosine": 1}, None, "cosine"]),
        ("lowres_mode", ["auto", "area"], ["nearest-ish"]),
    ],
)
def test_every_setting_has_its_bounds(field: str, legal: list[Any], wrong: list[Any]) -> None:
    for value in legal:
        assert getattr(StageDefaults(**{**SIZES, field: value}), field) == value
    for value in wrong:
        with pytest.raises(
            ValueError, match=rf"^(stage: )?{'lowres_size' if field == 'size' and value == 7 else field}"
        ):
            StageDefaults(**{**SIZES, field: value})


def test_a_stage_without_a_picture_to_start_from_keeps_no_colours() -> None:
    assert StageDefaults(size=8, lowres_consistency=0).lowres_size is None
    with pytest.raises(ValueError, match="lowres_consistency is 1; expected 0 without lowres_size"):
        StageDefaults(size=8, lowres_consistency=1)


def test_a_number_of_steps_may_have_an_upper_bound() -> None:
    assert check_steps("steps", 10, 10) == 10
    assert check_steps("steps", "fast27", 10) == "fast27"
    with pytest.raises(ValueError, match="steps is 11; expected an integer from 1 to 10"):
        check_steps("steps", 11, 10)


def test_a_version_is_a_whole_number_up_to_ours() -> None:
    assert [check_version(version) for version in (None, 0, FORMAT_VERSION)] == [0, 0, FORMAT_VERSION]
    for wrong in (-1, "4", 1.0, True, FORMAT_VERSION + 1):
        with pytest.raises(ValueError, match="format_version"):
            check_version(wrong)


def test_stages_that_are_not_stored_have_the_usual_sizes() -> None:
    stored = read_stages({"sr256": StageDefaults(size=128, lowres_size=32)}, FORMAT_VERSION)
    assert {slot: (stage.size, stage.lowres_size) for slot, stage in stored.items()} == {
        "base": (64, None), "sr256": (128, 32), "sr1024": (1024, 256),
    }  # fmt: skip
    for wrong, message in (
        ({"base64": {"size": 8}}, "stages: unknown key 'base64'; did you mean 'base'"),
        ({"sr256": {"lowres_size": 8}}, "stage sr256: no 'size'; give the side of the picture"),
        ({"sr256": [16]}, r"stage sr256 is \[16\]; expected an object with the keys of StageDefaults"),
        ({"base": {"size": 8}, "sr1024": {"sise": 8}}, "stage sr1024: unknown key 'sise'; did you mean 'size'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_stages(wrong, FORMAT_VERSION)


def test_our_choices_are_those_of_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")
    ours = StageDefaults(**SIZES)
    length = inspect.signature(ImagenPipeline.__init__).parameters["max_length"].default
    for told in (
        f"`{ours.threshold}`, p = {ours.threshold_p}, no upper cap",
        f"| {ours.num_inference_steps} steps; γ = 0 |",
        f"(`aug_space: {ours.aug_space}`)",
        f"| {length} tokens at most",
    ):
        assert told in page
    assert ours.threshold_cap is None
    assert (ours.aug_schedule, ours.lowres_mode, ours.guidance) == ({}, "auto", "cfg")
    assert 0.1 <= ours.aug_level <= 0.3, "the best-looking samples"
    assert ours.guidance_scale > 1
    assert ours.lowres_consistency == 0


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "../nowhere", "nowhere", "owner/name/more"])
def test_what_can_be_no_id_is_not_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(ValueError, match=f"model '{name}': no such folder; give a folder with {INDEX}, or a Hub id"):
        find_folder(name)


def test_a_folder_is_itself_and_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert find_folder(tmp_path) == find_folder(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match=f"is a file; give the folder that holds {INDEX}"):
        find_folder(tmp_path / "a")


def test_what_the_hub_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline hands the Hub's arguments on, each under its name, and leaves out what is not wanted."""
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or str(tmp_path)
    )
    hub = {name: f"the {name}" for name in HUB_ARGUMENTS}
    with pytest.raises(ValueError, match=f"holds no {INDEX}"):
        ImagenPipeline.from_pretrained("owner/name", sr256_unet=None, watermarker=None, **hub)
    assert find_folder("owner/name", "fp16", ["a"], ["*.x"], revision="r") == tmp_path
    (name, first), (_, second) = asked
    assert name == "owner/name"
    assert {key: first[key] for key in HUB_ARGUMENTS} == hub
    assert set(HUB_ARGUMENTS) >= {"revision", "token", "cache_dir", "local_files_only"}
    assert sorted(first["ignore_patterns"]) == sorted(["sr256_unet/*", "watermarker/*", "*.*.safetensors", "*.*.bin"])
    assert second == {"revision": "r", "allow_patterns": ["*.x"], "ignore_patterns": ["a/*"]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A pipeline's folder whose weights are empty files: base and sr256 whole, sr1024 without a scheduler."""
    parts = ["base_unet", "base_scheduler", "sr256_unet", "sr256_scheduler", "sr1024_unet", "text_encoder", "tokenizer"]
    for part in parts:
        (tmp_path / part).mkdir()
        if part.endswith(("unet", "encoder")):
            (tmp_path / part / "w.safetensors").touch()
    stages = {"base": {"size": 8}, "sr256": SIZES}
    index = {"_class_name": "ImagenPipeline", "stages": stages, "format_version": FORMAT_VERSION, "max_length": 9}
    listed = {part: ["library", "Class"] for part in parts} | {"sr1024_scheduler": [None, None], "other": [1, 2, 3]}
    (tmp_path / INDEX).write_text(json.dumps({**index, "conditions": {"label": {"names": ["a"]}}, **listed}))
    return tmp_path


def test_a_model_holds_the_stages_that_have_network_and_scheduler(model: Path) -> None:
    stages = read_model(model)
    assert list(stages) == ["base", "sr256"]
    assert list(read_model(model, ["base_scheduler"])) == ["sr256"]
    for slot, stage in stages.items():
        assert (stage.slot, stage.defaults.size) == (slot, {"base": 8, "sr256": 16}[slot])
        assert (stage.unet, stage.scheduler) == (model / f"{slot}_unet", model / f"{slot}_scheduler")
        assert (stage.max_length, stage.encoder) == (9, str(model))
        assert stage.conditions == {"label": {"names": ["a"]}}
    index = json.loads((model / INDEX).read_text())
    (model / INDEX).write_text(json.dumps({k: v for k, v in index.items() if k not in ("conditions", "max_length")}))
    assert (read_model(model)["base"].conditions, read_model(model)["base"].max_length) == ({}, 128)


@pytest.mark.parametrize("part", ["sr256_unet", "text_encoder", "tokenizer", "base_scheduler"])
def test_a_listed_part_has_a_folder_and_what_holds_weights_has_some(model: Path, part: str) -> None:
    for file in (model / part).iterdir():
        file.unlink()
    if part in ("sr256_unet", "text_encoder"):
        with pytest.raises(ValueError, match=rf"{part}/ holds no \*.safetensors weights"):
            read_model(model)
    else:
        read_model(model)
    (model / part).rmdir()
    with pytest.raises(ValueError, match=f"{part} is listed but {part}/ is missing"):
        read_model(model)
    read_model(model, [part])


def test_what_an_index_says_wrongly_is_told_with_its_folder(model: Path) -> None:
    index = json.loads((model / INDEX).read_text())
    for entries, message in (
        ({"stages": {"base": {"size": 0}}}, "stage base: size is 0"),
        ({"format_version": FORMAT_VERSION + 1}, "newer than the"),
        ({"text": {"padding": "none"}}, "padding"),
    ):
        (model / INDEX).write_text(json.dumps({**index, **entries}))
        with pytest.raises(ValueError, match=f"^model folder '{model}': .*{message}"):
            read_model(model)


def test_a_network_s_tensors_may_lie_in_several_files(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "1.safetensors")
    save_file({"c": torch.zeros(1)}, tmp_path / "2.safetensors")
    check_complete(tmp_path, "cab")
    with pytest.raises(ValueError, match=r"lacks 20 tensors of the network \(d, ...\); fetch it again"):
        check_complete(tmp_path, "wvutsrqponmlkjihgfedcba")


# --- what is loaded ---------------------------------------------------------------------------------------------------


def test_a_network_is_loaded_whole_in_the_dtype_asked_for_and_forgets_where_it_lay(tmp_path: Path) -> None:
    network = tiny_base()
    network.save_pretrained(tmp_path)
    for dtype, loaded in (
        (torch.float32, load_network(tmp_path)),
        (torch.float16, load_network(tmp_path, torch.float16)),
    ):
        assert type(loaded) is type(network)
        assert loaded.config._name_or_path == ""
        assert all(torch.equal(v, network.state_dict()[k].to(dtype)) for k, v in loaded.state_dict().items())
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.popitem()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"^{tmp_path} holds no network: .*lacks 1 tensors"):
        load_network(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"_class_name": "Transformer"}'])
def test_what_is_no_network_or_scheduler_is_one_line(tmp_path: Path, content: str | None) -> None:
    for name, load in (("config", load_network), ("scheduler_config", load_scheduler)):
        if content is not None:
            (tmp_path / f"{name}.json").write_text(content)
        what = "network" if load is load_network else "scheduler"
        with pytest.raises(ValueError, match=f"^{tmp_path} holds no {what}: ") as told:
            load(tmp_path)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_a_scheduler_is_ours_or_diffusers(tmp_path: Path, kind: Any) -> None:
    scheduler = make_scheduler(kind, CosineSchedule(), "v_prediction")
    scheduler.save_pretrained(tmp_path)
    loaded = load_scheduler(tmp_path)
    assert type(loaded) is type(scheduler)
    assert type(loaded) is DDIMScheduler or kind == "ddpm"
    assert loaded.config.prediction_type == "v_prediction"
    assert torch.equal(loaded.alphas_cumprod, scheduler.alphas_cumprod)
