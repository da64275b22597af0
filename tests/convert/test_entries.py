"""What configurations say, entry by entry: checked on both sides of each bound, and written for the other library."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from imagen.convert.configs import stage_settings, unet2d_config, unet_arguments
from imagen.convert.deepfloyd_if import open_source
from imagen.convert.folder import check_new, copy_component, copy_licences, new_folder
from imagen.stages.spec import SAFETY, StageDefaults
from tests.convert.released import TINY_I, TINY_II, scheduler
from unets import BaseUNet

SCHEDULER = {**scheduler(1.5).config, "dynamic_thresholding_ratio": 0.9}


def test_a_base_stage_samples_as_ifs_pipeline_does_unasked() -> None:
    stored = StageDefaults(**stage_settings(SCHEDULER, 48, None, "here"))
    told = {"size": 48, "num_inference_steps": 100, "guidance_scale": 7.0}
    assert stored == StageDefaults(**told, threshold="dynamic", threshold_p=0.9, threshold_cap=1.5)


def test_a_second_stage_noises_and_enlarges_its_picture_as_ifs_pipeline_does_unasked() -> None:
    stored = StageDefaults(**stage_settings(SCHEDULER, 48, 16, "here"))
    assert (stored.size, stored.lowres_size, stored.num_inference_steps, stored.guidance_scale) == (48, 16, 50, 4.0)
    assert 1000 * stored.aug_level - 0.5 == pytest.approx(250), "the timestep that the network is told"
    assert (stored.aug_space, stored.aug_schedule) == ("upsampled", {"kind": "cosine_discrete"})
    assert stored.lowres_mode == "bilinear_corners"
    assert (stored.threshold, stored.threshold_p, stored.threshold_cap) == ("dynamic", 0.9, 1.5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "dynamic"),
        ({"clip_sample": False}, "dynamic"),
        ({"thresholding": False}, "static"),
        ({"thresholding": False, "clip_sample": False}, "none"),
        ({"thresholding": False, "clip_sample": False, "clip_sample_range": 2}, "none"),
        ({"clip_sample_range": 2}, "dynamic"),
        ({"thresholding": False, "clip_sample_range": 2}, "here: clip_sample_range is 2, expected 1"),
        ({"prediction_type": "sample"}, "here: prediction_type is 'sample', expected 'epsilon'"),
        ({"num_train_timesteps": 999}, "here: num_train_timesteps is 999, expected 1000"),
    ],
)
def test_a_scheduler_thresholds_as_its_entries_say(changes: dict[str, Any], expected: str) -> None:
    config = {**SCHEDULER, **changes}
    if expected.startswith("here"):
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            stage_settings(config, 48, None, "here")
    else:
        assert stage_settings(config, 48, None, "here")["threshold"] == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_hid_dim_type": None},
        {"dropout": 0},
        {"dropout": 0.5},
        {"layers_per_block": [1, 3]},
        {"attention_head_dim": [8, 8]},
        {"cross_attention_dim": [64, 64]},
        {"_class_name": "UNet2DConditionModel", "_name_or_path": "x"},
        {"block_out_channels": [16, 16]},
        {"sample_size": 1},
        {"addition_embed_type_num_heads": 1},
    ],
)
def test_what_networks_of_the_family_may_have(changes: dict[str, Any]) -> None:
    assert unet_arguments({**TINY_I, **changes}, "here").keys() == unet_arguments(TINY_I, "here").keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": -0.1}, "dropout is -0.1; expected a finite number of at least 0"),
        ({"layers_per_block": [1, 0]}, r"layers_per_block is \[1, 0\], expected one number, or 2"),
        ({"layers_per_block": [1]}, r"layers_per_block is \[1\], expected one number, or 2"),
        ({"layers_per_block": 0}, "layers_per_block is 0, expected one number, or 2"),
        ({"layers_per_block": [1, 1.5]}, "layers_per_block is"),
        ({"attention_head_dim": [8, 8, 4]}, r"attention_head_dim is \[8, 8, 4\], expected one number for all levels"),
        ({"attention_head_dim": "8"}, "attention_head_dim is '8', expected one number"),
        ({"block_out_channels": "16"}, "block_out_channels is '16', expected a list"),
        ({"block_out_channels": []}, r"block_out_channels is \[\], expected a list"),
        ({"down_block_types": []}, r"down_block_types is \[\], expected a list"),
        ({"block_out_channels": [16, 0]}, "block_out_channels is 0; expected an integer of at least 1"),
        ({"block_out_channels": [16, 32, 48]}, r"block_out_channels \[16, 32, 48\] must be 2 multiples of the first"),
        ({"block_out_channels": [16, 24]}, r"block_out_channels \[16, 24\] must be 2 multiples of the first"),
        ({"norm_num_groups": 32}, r"norm_num_groups 32 does not divide \[16, 32\]"),
        ({"sample_size": 0}, "sample_size is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"out_channels": 7}, "out_channels is 7, expected 6"),
        ({"in_channels": 6}, "in_channels is 6, expected 3"),
        ({"encoder_hid_dim": 0}, "encoder_hid_dim is 0"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0"),
        ({"addition_embed_type_num_heads": 0}, "addition_embed_type_num_heads is 0"),
        ({"mid_block_scale_factor": 2.0}, "mid_block_scale_factor is 2.0, expected 1.0 beside its other entries"),
        ({"act_fn": "swish"}, "act_fn is 'swish'"),
        ({"class_embed_type": "timestep"}, "in_channels is 3, expected 6"),
        (
            {
                "down_block_types": [*TINY_I["down_block_types"]][::-1],
                "up_block_types": [*TINY_I["up_block_types"]][::-1],
            },
            "down_block_types ends with 'ResnetDownsampleBlock2D', expected SimpleCrossAttnDownBlock2D at the lowest",
        ),
    ],
)
def test_what_they_may_not_have_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^here: {message}"):
        assert unet_arguments({**TINY_I, **changes}, "here").keys() == unet_arguments(TINY_I, "here").keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 2}, "patch_size is 2; IF's pipelines can only hold 1"),
        ({"text_norm": "layer"}, "text_norm is 'layer'; IF's pipelines can only hold 'group'"),
        ({"text_pooling": "mean"}, "text_pooling is 'mean'"),
        ({"input_skip": True}, "input_skip is True; IF's pipelines can only hold False"),
        ({"head_channels": 8}, "head_channels is 8; IF's pipelines can only hold None"),
        ({"out_channels": 3}, "out_channels is 3; IF's pipelines can only hold 6"),
        ({"lowres_channels": 1}, "lowres_channels is 1; IF's pipelines can only hold 3"),
        ({"text_dim": None}, "text_dim is null; IF's pipelines need a network with projected text, and a number"),
        ({"text_proj_dim": None}, "text_proj_dim is null"),
        ({"pool_heads": None}, "pool_heads is null"),
        ({"attention_levels": [0]}, r"attention_levels \[0\] leaves out the lowest level"),
    ],
)
def test_what_diffusers_network_cannot_be_is_named_on_the_way_back(changes: dict[str, Any], message: str) -> None:
    config = dict(BaseUNet(**unet_arguments(TINY_I, "here")).config)
    with pytest.raises(ValueError, match=f"^here: {message}"):
        unet2d_config({**config, **changes}, 16, "here")


def test_a_second_stage_s_network_says_so_on_the_way_back() -> None:
    """diffusers' own defaults where the stage was released with them."""
    for there, config in ((False, TINY_I), (True, TINY_II)):
        back = unet2d_config(BaseUNet(**unet_arguments(config, "here")).config, 24, "here")
        assert (back["sample_size"], back["resnet_skip_time_act"]) == (24, there)
        assert back["time_embedding_act_fn"] == ("gelu" if there else None)
        assert back["class_embed_type"] == ("timestep" if there else None)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_new_folder_is_free_and_appears_when_all_went_well(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "deep/new"):
        check_new(tmp_path / name)
        with new_folder(tmp_path / name) as folder:
            (folder / "a").write_text("a")
            assert not (tmp_path / name / "a").exists()
        assert (tmp_path / name / "a").read_text() == "a"
    (tmp_path / "file").write_text("mine")
    for name in ("file", "new"):
        with pytest.raises(ValueError, match=f"{name} is already there; give a new folder, or remove it first"):
            check_new(tmp_path / name)

    def breaks_off() -> None:
        with new_folder(tmp_path / "half") as folder:
            (folder / "a").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        breaks_off()
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "new", "deep", "file"}


def test_a_component_without_weights_is_copied_but_for_what_could_be_unpickled(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer"
    (source / "folder.json").mkdir(parents=True)
    names = {"a.json", "merges.txt", "spiece.model", "x.safetensors"}
    for name in (*names, "pytorch_model.bin", "x.pt", "code.py", "weights.pkl"):
        (source / name).write_text(name)
    copy_component(source, tmp_path / "deep" / "copy", None)
    assert {path.name for path in (tmp_path / "deep" / "copy").iterdir()} == names
    assert (tmp_path / "deep" / "copy" / "a.json").read_text() == "a.json"


def test_every_licence_travels_and_two_of_one_name_stay_apart(tmp_path: Path) -> None:
    texts = {"one": {"LICENSE": "a", "NOTICE.txt": "n", "README.md": "r"}, "two": {"LICENSE": "b", "LICENCE.md": "c"}}
    texts["two"] |= {"NOTICE.txt": "n", "USE_POLICY.md": "u"}
    for folder, files in texts.items():
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    (tmp_path / "one" / "LICENSES").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    expected = {"LICENSE": "a", "LICENSE-2": "b", "LICENCE.md": "c", "NOTICE.txt": "n", "USE_POLICY.md": "u"}
    assert copy_licences([tmp_path / "one", tmp_path / "two"], target) == sorted(expected)
    assert {path.name: path.read_text() for path in target.iterdir()} == expected


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_of_a_hub_id_the_weights_asked_for_are_fetched(variant: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a variant its own, and the plain ones of the small parts, which are not released in it."""
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> None:
        asked.update(options, name=name)
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match="could not be fetched from the Hub: no route to host"):
        open_source("owner/name", variant)

    def fetched(path: str) -> bool:
        allowed = any(fnmatch(path, pattern) for pattern in asked["allow_patterns"])
        return allowed and not any(fnmatch(path, pattern) for pattern in asked["ignore_patterns"])

    assert asked["name"] == "owner/name"
    for name in ("unet/config.json", "tokenizer/spiece.model", "LICENSE.md", "model_index.json", "tokenizer/a.txt"):
        assert fetched(name)
    assert fetched("unet/model.safetensors") is (variant is None)
    assert (
        fetched("unet/model.fp16.safetensors") is fetched("unet/model.fp16-1-of-2.safetensors") is (variant == "fp16")
    )
    for name in SAFETY:
        assert fetched(f"{name}/model.safetensors")
    assert not fetched("unet/model.bf16.safetensors")
    assert not fetched("unet/pytorch_model.bin")
