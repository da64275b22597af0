"""A pipeline of the folders of runs, of another's components, and of networks that are not the ones named."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen import ImagenPipeline
from imagen.cascade.training.compose import compose
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.evaluation.__main__ import build_parser
from imagen.evaluation.generate import load
from imagen.stages.folder import SavedStage, write_run
from imagen.stages.spec import StageDefaults
from imagen.text.reading import TextDefaults
from tests.factories import tiny_base, tiny_pipeline, tiny_sr, tiny_text_encoder, tiny_tokenizer
from unets import BaseUNet, DiT, EfficientUNet

SIZES: dict[str, dict[str, int]] = {"base": {"size": 16}, "sr256": {"size": 32, "lowres_size": 16}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any) -> dict[str, Path]:
    """A base stage and the next, as two trainings leave them, with one text encoder."""
    root = tmp_path_factory.mktemp("runs")
    tiny_text_encoder().save_pretrained(root / "t5")
    tiny_tokenizer().save_pretrained(root / "t5")
    for slot, network in (("base", tiny_base()), ("sr256", tiny_sr())):
        model = root / slot / "model"
        model.mkdir(parents=True)
        network.save_pretrained(model / "unet")
        make_scheduler("ddim", CosineSchedule(), "sample").save_pretrained(model / "scheduler")
        defaults = StageDefaults(**SIZES[slot], num_inference_steps=2)
        parts = (model / "unet", model / "scheduler", TextDefaults(), 9)
        write_run(model, SavedStage(slot, defaults, *parts, encoder=str(root / "t5")))
    return {slot: root / slot for slot in SIZES}


def picture(pipe: ImagenPipeline) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red circle", generator=torch.Generator().manual_seed(0), output_type="pt").images


def test_one_run_and_several_are_loaded_as_composed(runs: dict[str, Path]) -> None:
    both = picture(compose(runs))
    backwards = [runs["sr256"], str(runs["base"])]
    for name in (list(runs.values()), backwards, f"{runs['base']}, {runs['sr256'] / 'model'}"):
        pipe = ImagenPipeline.from_pretrained(name)
        assert list(pipe.stage_defaults) == ["base", "sr256"]
        assert pipe.config["max_length"] == 9
        assert torch.equal(picture(pipe), both)
    for alone in (runs["base"], [runs["base"]], str(runs["base"] / "model")):
        assert torch.equal(picture(ImagenPipeline.from_pretrained(alone)), picture(compose({"base": runs["base"]})))


def test_a_list_of_one_is_what_it_names(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    assert list(ImagenPipeline.from_pretrained([tmp_path]).stage_defaults) == ["base", "sr256", "sr1024"]
    with pytest.raises(ValueError, match="list of runs is empty"):
        ImagenPipeline.from_pretrained([])
    with pytest.raises(ValueError, match="holds no exported stage"):
        ImagenPipeline.from_pretrained([tmp_path, tmp_path])


def test_dtype_and_components_act_on_runs_and_what_cannot_act_is_refused(runs: dict[str, Path]) -> None:
    encoder = tiny_text_encoder(seed=3)
    name = list(runs.values())
    pipe = ImagenPipeline.from_pretrained(name, dtype="bfloat16", text_encoder=encoder, sr256_unet=None)
    assert pipe.base_unet.dtype == torch.bfloat16
    assert pipe.text_encoder is encoder
    assert pipe.tokenizer is not None
    assert list(pipe.stage_defaults) == ["base"]
    per_part = {"default": torch.float32, "text_encoder": torch.float16}
    pipe = ImagenPipeline.from_pretrained(name, torch_dtype=per_part, variant=None, use_safetensors=True)
    assert (pipe.text_encoder.dtype, pipe.base_unet.dtype) == (torch.float16, torch.float32)
    pipe = ImagenPipeline.from_pretrained(name, dtype={"base_unet": torch.bfloat16})
    assert (pipe.base_unet.dtype, pipe.sr256_unet.dtype, pipe.text_encoder.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    own = tiny_base(seed=5)
    assert (
        ImagenPipeline.from_pretrained(runs["base"], base_unet=own, tokenizer=None, text_encoder=None).base_unet is own
    )
    for option in ({"variant": "fp16"}, {"device_map": "auto"}, {"use_safetensors": False}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is for saved pipelines"):
            ImagenPipeline.from_pretrained(name, **option)


def test_runs_that_are_no_pipeline_are_told(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names two runs of the stage base"):
        ImagenPipeline.from_pretrained([runs["base"], runs["base"]])
    with pytest.raises(ValueError, match="there is no folder '.*nowhere': give the run_dir of a training"):
        ImagenPipeline.from_pretrained(f"{runs['base']},{tmp_path / 'nowhere'}")
    (tmp_path / "state").mkdir()
    with pytest.raises(ValueError, match="a run that has exported no stage yet"):
        ImagenPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs 8: pass tokenizer= and text_encoder="):
        ImagenPipeline.from_pretrained(runs["base"], base_unet=tiny_base(text_dim=8))


def test_evaluation_judges_runs(runs: dict[str, Path]) -> None:
    for command in ("alignment", "sweep", "guidances", "samplers", "superres"):
        model = ",".join(map(str, runs.values()))
        args = build_parser().parse_args([command, "--model", model, "--device", "cpu"])
        assert list(load(args).stage_defaults) == ["base", "sr256"]


# --- components of another pipeline -----------------------------------------------------------------------------------


def test_components_alone_lose_settings_and_say_so_in_a_line() -> None:
    pipe = tiny_pipeline(max_length=17)
    with pytest.warns(
        UserWarning, match=r"lose stages, max_length, presets of .* use ImagenPipeline\.from_pipe\(pipe\)"
    ) as told:
        ImagenPipeline(**pipe.components)
    assert len(told) == 1
    assert "\n" not in str(told[0].message)


def test_where_nothing_is_lost_nothing_is_said() -> None:
    pipe = tiny_pipeline(max_length=17)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        ImagenPipeline.from_pipe(pipe)
        ImagenPipeline(**pipe.components, **pipe.parameters)
        first = ImagenPipeline(base_unet=tiny_base(), base_scheduler=pipe.base_scheduler)
        ImagenPipeline(**first.components)  # the usual sizes, both
    assert [str(one.message) for one in told if "components alone" in str(one.message)] == []


# --- networks that are not the ones named -----------------------------------------------------------------------------


@pytest.mark.parametrize("other", [EfficientUNet, DiT])
def test_a_network_of_another_class_is_said_in_words(other: Any, tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"this is a BaseUNet, not a {other.__name__}: load it with BaseUNet"):
        other.from_pretrained(tmp_path)

    class Mine(BaseUNet):
        pass

    assert isinstance(Mine.from_pretrained(tmp_path), Mine)
    assert isinstance(BaseUNet.from_config(tiny_base().config), BaseUNet)


def test_an_index_that_names_another_network_is_said_in_words(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "base_unet": ["unets.efficient", "EfficientUNet"]}))
    with pytest.raises(ValueError, match=r"base_unet/ holds a BaseUNet, but model_index\.json names a EfficientUNet"):
        ImagenPipeline.from_pretrained(tmp_path)
    ImagenPipeline.from_pretrained(tmp_path, base_unet=tiny_base())
