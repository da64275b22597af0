"""Into our folder and back: every weight bit for bit, every entry that diffusers reads, and what travels along."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline

from imagen import ImagenPipeline
from imagen.convert.__main__ import main
from imagen.convert.deepfloyd_if import convert
from imagen.convert.export import export
from tests.convert import released
from tests.factories import seeded, tiny_clip, tiny_clip_tokenizer

QUIET = {"safety_checker": None, "watermarker": None, "requires_safety_checker": False}


@pytest.fixture(scope="module")
def exported(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "back"
    assert export(converted, folder) == ["IF-I", "IF-II"]
    return folder


def entries(path: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("_")}


@pytest.mark.parametrize(("stage", "cls"), [("I", IFPipeline), ("II", IFSuperResolutionPipeline)])
def test_a_round_trip_is_bit_equal(checkpoint: Path, exported: Path, stage: str, cls: Any) -> None:
    before, after = checkpoint / stage, exported / f"IF-{stage}"
    weights = [path.relative_to(before) for path in before.rglob("*.safetensors")]
    assert weights
    for name in weights:
        assert filecmp.cmp(before / name, after / name, shallow=False), name
    loaded = cls.from_pretrained(after, **QUIET)
    first = cls.from_pretrained(before, **QUIET)
    for part in ("unet", "scheduler"):
        once, twice = ({k: v for k, v in getattr(pipe, part).config.items() if k[0] != "_"} for pipe in (first, loaded))
        assert once == twice
    assert all(torch.equal(a, b) for a, b in zip(first.unet.parameters(), loaded.unet.parameters(), strict=True))
    assert (after / "LICENSE").read_text() == released.LICENCE


def test_there_and_back_and_there_is_the_same_folder(converted: Path, exported: Path, tmp_path: Path) -> None:
    convert([str(exported / "IF-II"), str(exported / "IF-I")], tmp_path / "again")
    once, twice = (
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for folder in (converted, tmp_path / "again")
    )
    assert once == twice
    for name in once:
        assert (converted / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_what_is_stored(converted: Path) -> None:
    index = entries(converted / "model_index.json")
    base, second = index["stages"]["base"], index["stages"]["sr256"]
    assert (base["size"], second["lowres_size"], second["size"]) == (16, 16, 32)
    assert [(s["threshold"], s["threshold_p"], s["threshold_cap"]) for s in (base, second)] == [
        ("dynamic", 0.95, 1.5),
        ("dynamic", 0.95, 1.0),
    ]
    assert (second["aug_space"], second["lowres_mode"]) == ("upsampled", "bilinear_corners")
    assert index["max_length"] == 77
    assert index["text"] == {"padding": "visible", "null": "empty", "lowercase": True}
    for slot in ("base", "sr256"):
        scheduler = entries(converted / f"{slot}_scheduler" / "scheduler_config.json")
        assert (scheduler["timestep_spacing"], scheduler["variance_type"]) == ("leading", "learned_range")
    assert (converted / "LICENSE").read_text() == released.LICENCE
    assert {path.suffix for path in converted.rglob("*") if path.is_file()} <= {".json", ".safetensors", ""}


def test_what_is_written_is_for_everybody_to_read(converted: Path, exported: Path) -> None:
    """As any folder that a command makes is; a temporary one is for its owner alone."""
    for folder in (converted, exported):
        assert folder.stat().st_mode & 0o777 == 0o755


def test_half_precision_shards_of_stage_2_alone(tmp_path: Path) -> None:
    pipe = released.stage_2(text_encoder=None, tokenizer=None)
    pipe.unet.half()
    folder = released.save(pipe, tmp_path / "II", variant="fp16", max_shard_size="50KB")
    assert len(list((folder / "unet").glob("*.fp16-0000*.safetensors"))) > 1
    assert main(["deepfloyd-if", str(folder), str(tmp_path / "model"), "--variant", "fp16"]) == 0
    loaded = ImagenPipeline.from_pretrained(tmp_path / "model", dtype=torch.float16)
    assert list(loaded.stage_defaults) == ["sr256"]
    theirs = pipe.unet.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in loaded.sr256_unet.state_dict().items())
    assert main(["export-deepfloyd-if", str(tmp_path / "model"), str(tmp_path / "back")]) == 0
    again = IFSuperResolutionPipeline.from_pretrained(tmp_path / "back" / "IF-II", torch_dtype=torch.float16)
    assert all(torch.equal(value, theirs[name]) for name, value in again.unet.state_dict().items())
    with pytest.raises(ValueError, match="is the encoding of an empty prompt"):
        loaded(prompt_embeds=torch.zeros(1, 77, 16), image=torch.zeros(1, 3, 16, 16))


@torch.no_grad()
def test_safety_checker_and_watermark_are_carried_and_act(converted: Path) -> None:
    pipe = ImagenPipeline.from_pretrained(converted)
    pipe.set_progress_bar_config(disable=True)

    def picture(output_type: str) -> np.ndarray:
        given = {"num_inference_steps": 1, "generator": seeded(), "output_type": output_type}
        return np.asarray(pipe("a red circle", **given).images[0], dtype=np.float32)

    pipe.safety_checker.w_head.bias.fill_(-100.0)
    pipe.safety_checker.p_head.bias.fill_(-100.0)
    marked, unmarked = picture("pil"), picture("np")
    assert unmarked.max() > 0
    changed = np.argwhere(np.abs(marked - (unmarked * 255).round()).max(axis=-1) > 0)
    assert changed.tolist() == [[31, 31]]  # the lower right corner: 62 / 1024 of 32 px
    pipe.watermarker = None
    assert np.array_equal(picture("pil"), (unmarked * 255).round())
    pipe.safety_checker.p_head.bias.fill_(100.0)
    assert picture("pil").max() == picture("np").max() == 0
    assert picture("pt").max() > 0  # as diffusers' pipelines: tensors leave unchecked
    pipe.feature_extractor = None
    with pytest.raises(ValueError, match="safety_checker needs feature_extractor"):
        picture("pil")


def test_what_is_not_wanted_stays_behind(checkpoint: Path, tmp_path: Path) -> None:
    words = ["deepfloyd-if", str(checkpoint / "I"), str(tmp_path / "bare"), "--without", "safety_checker"]
    assert main([*words, "--without", "watermarker"]) == 0
    bare = ImagenPipeline.from_pretrained(tmp_path / "bare")
    assert bare.safety_checker is None
    assert bare.watermarker is None
    assert bare.feature_extractor is not None
    with pytest.raises(SystemExit):
        main([*words, "--without", "unet"])


def test_what_ifs_pipelines_cannot_hold_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.factories import tiny_pipeline

    tiny_pipeline().save_pretrained(tmp_path / "ours")
    assert main(["export-deepfloyd-if", str(tmp_path / "ours"), str(tmp_path / "back")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "base_unet/config.json: text_norm is 'layer'; IF's pipelines can only hold 'group'" in message
    assert not (tmp_path / "back").exists()


def test_colours_kept_by_the_stage_cannot_go_back(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = ImagenPipeline.from_pretrained(converted)
    pipe.set_stage_defaults("sr256", lowres_consistency=4)
    pipe.save_pretrained(tmp_path / "kept")
    assert main(["export-deepfloyd-if", str(tmp_path / "kept"), str(tmp_path / "back")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "stage sr256 has lowres_consistency 4" in message
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(("entry", "told"), [
    ({"text": {"padding": "masked", "null": "empty", "lowercase": True}}, "padding 'masked', and IF's pipelines h"),
    ({"text": {"padding": "visible", "null": "zero", "lowercase": True}}, "null 'zero', and IF's pipelines hav"),
    ({"text": {"padding": "visible", "null": "empty"}}, "lowercase False, and IF's pipelines have True"),
    ({"max_length": 128}, "max_length 128, and IF's pipelines have 77"),
])  # fmt: skip
def test_text_that_is_read_otherwise_cannot_go_back(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: dict[str, Any], told: str
) -> None:
    shutil.copytree(converted, tmp_path / "other")
    index = json.loads((tmp_path / "other" / "model_index.json").read_text())
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({**index, **entry}))
    assert main(["export-deepfloyd-if", str(tmp_path / "other"), str(tmp_path / "back")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"other: text is read with {told}" in message
    assert not (tmp_path / "back").exists()


def test_a_clip_tower_cannot_go_back(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    towers = {"text_encoder": tiny_clip(positions=77), "tokenizer": tiny_clip_tokenizer()}
    pipe = ImagenPipeline.from_pretrained(converted, **towers)
    pipe.save_pretrained(tmp_path / "clip")
    capsys.readouterr()  # what diffusers says while it loads
    assert main(["export-deepfloyd-if", str(tmp_path / "clip"), str(tmp_path / "back")]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.endswith("clip: text_encoder is a CLIPTextModel; IF's pipelines read text with a T5EncoderModel")
    assert not (tmp_path / "back").exists()
