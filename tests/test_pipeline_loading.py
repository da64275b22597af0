"""Pipelines on disk, on the Hub and on devices: what is saved comes back, what is damaged is named."""

from __future__ import annotations

import fnmatch
import json

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DPMSolverMultistepScheduler
from diffusers.utils.import_utils import is_xformers_available
from safetensors.torch import load_file, save_file

from imagen import ImagenPipeline
from imagen.stages.folder import HUB_PATTERNS
from imagen.stages.spec import FORMAT_VERSION, StageDefaults
from imagen.text.reading import TextDefaults
from tests.factories import SIZES, WIDTH, tiny_pipeline

PROMPT = "a red circle"
NETWORKS = ("text_encoder", "base_unet", "sr256_unet", "sr1024_unet")
VERSION_1_STAGE = {
    "size": 32,
    "lowres_size": 16,
    "num_inference_steps": 3,
    "guidance_scale": 2.5,
    "threshold": "static",
    "threshold_p": 0.95,
    "threshold_cap": 1.5,
    "aug_level": 0.25,
    "aug_space": "upsampled",
    "aug_schedule": {"kind": "linear", "shift": 0.5, "max_log_snr": 15.0},
    "lowres_mode": "bilinear_corners",
}
VERSION_3_STAGE = {**VERSION_1_STAGE, "lowres_consistency": 4}
VERSION_4_STAGE = {**VERSION_3_STAGE, "guidance": "interval(low=-1, high=3)+cfg"}
VERSION_5_STAGE = {**VERSION_4_STAGE, "sampler": "dpm++(use_exponential_sigmas)"}
STAGES = {1: VERSION_1_STAGE, 3: VERSION_3_STAGE, 4: VERSION_4_STAGE, 5: VERSION_5_STAGE}
VERSION_2_TEXT = {"padding": "visible", "null": "empty", "lowercase": True}


def sample(pipe, **kwargs):
    pipe.set_progress_bar_config(disable=True)
    given = {"prompt": PROMPT, "generator": torch.Generator().manual_seed(0), "output_type": "pt", **kwargs}
    return pipe(**given).images


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the saved folder that a test may damage: the files are links, so replace and do not edit them."""
    for path in saved.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(saved)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
    return tmp_path


def rewrite_index(folder, **changes):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index.update(changes)
    path.unlink()
    path.write_text(json.dumps({key: value for key, value in index.items() if value is not ...}))


# --- round trips ------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_pictures_are_identical(saved):
    assert torch.equal(sample(ImagenPipeline.from_pretrained(saved)), sample(tiny_pipeline()))


def test_no_file_is_a_pickle(saved):
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".model", ".txt"}


def test_changed_defaults_and_schedulers_are_saved(tmp_path):
    pipe = tiny_pipeline()
    pipe.set_stage_defaults("sr256", num_inference_steps=3, aug_level=0.4)
    pipe.sr256_scheduler = DPMSolverMultistepScheduler.from_config(pipe.sr256_scheduler.config)
    pipe.save_pretrained(tmp_path)
    loaded = ImagenPipeline.from_pretrained(tmp_path)
    assert loaded.stage_defaults == pipe.stage_defaults
    assert loaded.stage_defaults["sr256"].aug_level == 0.4
    assert isinstance(loaded.sr256_scheduler, DPMSolverMultistepScheduler)
    assert torch.equal(sample(loaded), sample(pipe))
    with pytest.raises(ValueError, match="unknown key 'guidance_scal'; did you mean 'guidance_scale'"):
        pipe.set_stage_defaults("base", guidance_scal=3.0)


def test_variants_and_shards(tmp_path):
    pipe = tiny_pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="50KB")
    assert len(list((tmp_path / "base_unet").glob("*.fp16-0000*.safetensors"))) > 1
    loaded = ImagenPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    for name in NETWORKS:
        ours, theirs = getattr(pipe, name).state_dict(), getattr(loaded, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_pipeline_made_from_another_shares_its_parts():
    pipe = tiny_pipeline()
    for other in (ImagenPipeline.from_pipe(pipe), ImagenPipeline(**pipe.components, **pipe.parameters)):
        assert all(getattr(other, name) is getattr(pipe, name) for name in NETWORKS)
        assert other.stage_defaults == pipe.stage_defaults
        assert other.config.max_length == pipe.config.max_length


@pytest.mark.skipif(is_xformers_available(), reason="xformers is installed")
def test_xformers_asks_to_be_installed():
    with pytest.raises(ModuleNotFoundError, match="xformers"):
        tiny_pipeline().enable_xformers_memory_efficient_attention()


def test_components_may_be_left_out_or_given(saved):
    pipe = ImagenPipeline.from_pretrained(saved, sr1024_unet=None, sr1024_scheduler=None)
    assert list(pipe.stage_defaults) == ["base", "sr256"]
    encoder = pipe.text_encoder
    assert ImagenPipeline.from_pretrained(saved, text_encoder=encoder).text_encoder is encoder


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype_is_what_was_asked_for(saved, name):
    pipe = ImagenPipeline.from_pretrained(saved, **{name: torch.bfloat16})
    assert {getattr(pipe, network).dtype for network in NETWORKS} == {torch.bfloat16}
    pipe.save_pretrained(saved / name)
    again = ImagenPipeline.from_pretrained(saved / name)  # float32 unless said otherwise, whatever was stored
    assert {getattr(again, network).dtype for network in NETWORKS} == {torch.float32}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_is_near_and_comes_out_in_float32(dtype, tolerance):
    pipe = tiny_pipeline()
    exact = sample(pipe)
    half = sample(pipe.to(dtype))
    assert {getattr(pipe, network).dtype for network in NETWORKS} == {dtype}
    assert half.dtype == torch.float32
    assert (half - exact).abs().mean() < tolerance


def test_model_offload_hooks_change_nothing():
    """As far as a machine without an accelerator can tell: the hooks wrap forward, and nothing else is called."""
    pipe = tiny_pipeline()
    expected = sample(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # the hooks are set again at the end of a call
        torch.testing.assert_close(sample(pipe), expected, atol=1e-5, rtol=0)


def test_sequential_offload_of_the_networks_changes_nothing():
    """Between two calls no weight is anywhere but in the offload map (T5's tied ones need a real device for this)."""
    embeds = {"prompt": None, "prompt_embeds": torch.ones(1, 3, WIDTH)}
    pipe = tiny_pipeline(tokenizer=None, text_encoder=None)
    expected = sample(pipe, **embeds)
    for name in NETWORKS[1:]:
        cpu_offload(getattr(pipe, name), torch.device("cpu"))
    torch.testing.assert_close(sample(pipe, **embeds), expected, atol=1e-5, rtol=0)
    assert pipe.base_unet.device.type == "meta"


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "stored"), STAGES.items())
def test_every_entry_of_a_stage_is_still_read(copy, version, stored):
    stages = json.loads((copy / "model_index.json").read_text())["stages"]
    assert FORMAT_VERSION == 5, "keep these formats and add the new one"
    assert set(stages["sr256"]) == set(VERSION_5_STAGE)
    stages["sr256"] = stored
    rewrite_index(copy, stages=stages, format_version=version, max_length=17, text=..., presets=...)
    pipe = ImagenPipeline.from_pretrained(copy)
    assert pipe.stage_defaults["sr256"] == StageDefaults(
        **{"lowres_consistency": 0, "guidance": "cfg", "sampler": None, **stored}
    )
    assert pipe.config.max_length == 17
    assert pipe.reader.defaults == TextDefaults()  # format 1 knew one way to read a prompt
    assert torch.isfinite(sample(pipe)).all()


def test_every_entry_of_format_2_is_still_read(copy):
    rewrite_index(copy, text=VERSION_2_TEXT, format_version=2)
    pipe = ImagenPipeline.from_pretrained(copy)
    assert pipe.reader.defaults == TextDefaults(**VERSION_2_TEXT)
    pipe.set_stage_defaults("base", num_inference_steps="fast27")
    pipe.save_pretrained(copy / "again")
    again = ImagenPipeline.from_pretrained(copy / "again")
    assert again.stage_defaults["base"].steps == 27
    assert again.reader.defaults == pipe.reader.defaults


@pytest.mark.parametrize("part", [{"paddings": "visible"}, {"null": "none"}, {"lowercase": "yes"}])
def test_a_way_to_read_that_is_none_is_named(copy, part):
    rewrite_index(copy, text=part)
    with pytest.raises(ValueError, match=rf"text: .*{next(iter(part))}"):
        ImagenPipeline.from_pretrained(copy)


def test_a_folder_from_before_the_format_gets_the_usual_sizes(copy):
    rewrite_index(copy, stages=..., format_version=..., max_length=...)
    pipe = ImagenPipeline.from_pretrained(copy)
    assert [stage.size for stage in pipe.stage_defaults.values()] == [64, 256, 1024]
    assert pipe.config.format_version == FORMAT_VERSION


@pytest.mark.parametrize("part", [{"num_steps": 3}, {"size": 0}, {"threshold": "dynamics"}])
def test_a_stage_that_cannot_be_read_is_named(copy, part):
    rewrite_index(copy, stages={"sr256": {**VERSION_1_STAGE, **part}})
    with pytest.raises(ValueError, match=rf"stage sr256: .*{next(iter(part))}"):
        ImagenPipeline.from_pretrained(copy)


def test_a_newer_format_is_refused_in_one_line(copy):
    rewrite_index(copy, format_version=FORMAT_VERSION + 1)
    with pytest.raises(ValueError, match="newer than the 5 this version of imagen reads; update imagen") as caught:
        ImagenPipeline.from_pretrained(copy)
    assert "\n" not in str(caught.value)


# --- damage -----------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named(copy, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        ImagenPipeline.from_pretrained(tmp_path / "nowhere")
    (copy / "sr256_unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"sr256_unet/ holds no \*.safetensors"):
        ImagenPipeline.from_pretrained(copy)
    ImagenPipeline.from_pretrained(copy, sr256_unet=None)
    rewrite_index(copy, _class_name="StableDiffusionPipeline", format_version=...)
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline, not an ImagenPipeline"):
        ImagenPipeline.from_pretrained(copy)
    (copy / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json cannot be read"):
        ImagenPipeline.from_pretrained(copy)
    (copy / "model_index.json").unlink()
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        ImagenPipeline.from_pretrained(copy)


def test_a_text_encoder_with_unset_weights_is_refused(copy):
    path = copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    dropped = next(key for key in weights if "SelfAttention.q" in key)
    save_file({key: value for key, value in weights.items() if key != dropped}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"SelfAttention\.q"):
        ImagenPipeline.from_pretrained(copy)


# --- the Hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_id_is_fetched_whole_and_loaded_as_a_folder(saved, monkeypatch):
    asked = {}

    def snapshot_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    pipe = ImagenPipeline.from_pretrained("owner/name", revision="abc", sr1024_unet=None, sr1024_scheduler=None)
    assert asked["repo_id"] == "owner/name"
    assert asked["revision"] == "abc"
    assert pipe.name_or_path == "owner/name"
    assert list(pipe.stage_defaults) == ["base", "sr256"]

    def fetched(path):
        allowed = any(fnmatch.fnmatch(path, pattern) for pattern in asked["allow_patterns"])
        return allowed and not any(fnmatch.fnmatch(path, pattern) for pattern in asked["ignore_patterns"])

    weights = "diffusion_pytorch_model"
    assert fetched(f"base_unet/{weights}.safetensors")
    assert fetched(f"base_unet/{weights}-00001-of-00002.safetensors")
    assert fetched("tokenizer/spiece.model")
    assert not fetched(f"base_unet/{weights}.fp16.safetensors")
    assert not fetched(f"base_unet/{weights}.bin")
    assert not fetched(f"sr1024_unet/{weights}.safetensors")
    assert asked["allow_patterns"] == HUB_PATTERNS

    with pytest.raises(ValueError, match="fp16"):
        ImagenPipeline.from_pretrained("owner/name", variant="fp16")
    assert fetched(f"base_unet/{weights}.fp16.safetensors")


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route to host\nand a long explanation")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ValueError, match="'owner/name' is no folder here .* no route to host$"):
        ImagenPipeline.from_pretrained("owner/name")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_model_offload_on_a_real_device_gives_the_pictures_of_the_cpu():
    pipe = tiny_pipeline()
    expected = sample(pipe)
    pipe.enable_model_cpu_offload()
    torch.testing.assert_close(sample(pipe), expected, atol=1e-2, rtol=0)
    assert pipe.base_unet.device.type == "cpu"
    assert expected.shape[-1] == SIZES[-1]


def test_a_network_that_lacks_a_tensor_is_refused_and_not_filled_with_anything(copy):
    path = copy / "sr256_unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    path.unlink()
    save_file({key: value for key, value in tensors.items() if key != name}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"sr256_unet lacks 1 tensors of the network .{name}, "):
        ImagenPipeline.from_pretrained(copy)
    assert ImagenPipeline.from_pretrained(copy, sr256_unet=None).sr256_unet is None


@pytest.mark.parametrize("lost", ["base_scheduler/scheduler_config.json", "sr256_unet/config.json"])
def test_a_lost_file_is_one_line(copy, lost):
    (copy / lost).unlink()
    with pytest.raises(ValueError, match=r"model .* cannot be loaded: .*"):
        ImagenPipeline.from_pretrained(copy)


@pytest.mark.parametrize("stages", [[1], {"base": 5}])
def test_stages_of_another_type_are_told(copy, stages):
    rewrite_index(copy, stages=stages)
    with pytest.raises(ValueError, match=r"(stages|stage base) is (\[1\]|5); expected"):
        ImagenPipeline.from_pretrained(copy)


def test_a_dtype_by_name(saved):
    assert ImagenPipeline.from_pretrained(saved, dtype="bfloat16").base_unet.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 'half-ish'; expected float32"):
        ImagenPipeline.from_pretrained(saved, dtype="half-ish")


def test_a_tokenizer_without_its_words_is_refused(copy):
    for path in (copy / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        ImagenPipeline.from_pretrained(copy)
