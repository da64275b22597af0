"""What --model and --lora name: a pipeline's folder, one run or several; and what the files that are written say."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imagen import ImagenPipeline
from imagen.captions import strip
from imagen.cascade.adapter_files import save_adapter
from imagen.cascade.adapters import attach
from imagen.cli.compose import _renamed
from imagen.cli.compose import main as compose
from imagen.cli.model import _device, _load_adapters, _load_parts, load
from imagen.cli.png import read_settings, write_png
from imagen.cli.record import Picture, Writer
from imagen.cli.sample import check_read, main, parser, read_prompts, sample
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.disk import out_folder
from imagen.errors import Stopped
from imagen.stages.folder import ADAPTER as WEIGHTS
from imagen.stages.folder import INDEX, SavedStage, write_run
from imagen.stages.model import Model, find_model
from imagen.stages.spec import FORMAT_VERSION, StageDefaults
from imagen.text.reading import TextDefaults
from tests.factories import tiny_base, tiny_pipeline, tiny_sr


def record(folder: Path, slot: str, **facts: Any) -> SavedStage:
    """Write a stage's record and its network's configuration, without weights, as a run's model folder has them."""
    sizes: dict[str, Any] = {"base": {"size": 16}, "sr256": {"size": 32, "lowres_size": 16}}[slot]
    model = folder / "model"
    (model / "unet").mkdir(parents=True)
    config = {"_class_name": "BaseUNet", "in_channels": 3, "lowres_channels": 0 if slot == "base" else 3}
    (model / "unet" / "config.json").write_text(json.dumps(config))
    parts = (model / "unet", model / "scheduler", TextDefaults(), 9)
    stage = SavedStage(slot, StageDefaults(**sizes), *parts, **facts)
    write_run(model, stage)
    return stage


def test_runs_are_put_in_the_order_of_the_cascade(tmp_path: Path) -> None:
    base, second = record(tmp_path / "a", "base"), record(tmp_path / "b, c", "sr256")
    (tmp_path / "d").symlink_to(tmp_path / "b, c")
    assert find_model(str(tmp_path / "a")) == find_model(str(tmp_path / "a" / "model")) == Model({"base": base})
    assert find_model(str(tmp_path / "b, c")).stages == {"sr256": second}, "a folder's name may hold a comma"
    both = find_model(f"{tmp_path / 'd'} , {tmp_path / 'a'}")
    assert list(both.stages) == ["base", "sr256"]
    assert both.stages["base"] == base
    assert both.folder is None
    with pytest.raises(
        ValueError, match=f"the model names two runs of the stage base, the second is '{tmp_path / 'a'}'"
    ):
        find_model(f"{tmp_path / 'a'},{tmp_path / 'd'},{tmp_path / 'a'}")
    with pytest.raises(ValueError, match="holds no exported stage"):
        find_model(f"{tmp_path / 'a'},{tmp_path}")


def test_a_run_is_loaded_in_the_dtype_asked_for(tmp_path: Path) -> None:
    stage = record(tmp_path, "base")
    tiny_base(text_dim=None).save_pretrained(stage.unet)
    make_scheduler("ddim", CosineSchedule(), "sample").save_pretrained(stage.scheduler)
    for dtype in ("float32", "bfloat16"):
        pipe = _load_parts(Namespace(model="m", dtype=dtype, text=None), find_model(str(tmp_path)))
        assert pipe.base_unet.dtype == getattr(torch, dtype)


def test_a_pipeline_s_folder_is_one_whatever_else_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(ValueError, match="is the folder of a run that has exported no stage yet: let it train on"):
        find_model(str(tmp_path))
    for part in ("base_unet", "base_scheduler"):
        (tmp_path / part).mkdir()
    (tmp_path / "base_unet" / "a.safetensors").touch()
    index = {"_class_name": "ImagenPipeline", "format_version": FORMAT_VERSION, "stages": {"base": {"size": 16}}}
    listed = {part: ["library", "Class"] for part in ("base_unet", "base_scheduler")}
    (tmp_path / INDEX).write_text(json.dumps({**index, **listed}))
    found = find_model(str(tmp_path))
    assert found.folder == tmp_path
    assert list(found.stages) == ["base"]
    (tmp_path / INDEX).unlink()
    (tmp_path / "state").rmdir()
    with pytest.raises(ValueError, match=f"holds no {INDEX}"):
        find_model(str(tmp_path))


def test_a_model_that_fails_to_load_is_named_once(tmp_path: Path) -> None:
    tiny_pipeline(sr256_unet=None, sr1024_unet=None, tokenizer=None, text_encoder=None).save_pretrained(tmp_path)
    name, model = str(tmp_path), find_model(str(tmp_path))
    loaded = _load_parts(Namespace(model=name, dtype="bfloat16", text=None), model)
    assert loaded.base_unet.dtype == torch.bfloat16
    (tmp_path / "base_scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match="^model '.*' cannot be loaded: (?!.*cannot be loaded)(?!.*; save or fetch)"):
        _load_parts(Namespace(model=name, dtype="float32", text=None), model)
    with pytest.raises(ValueError, match="^model 'other' cannot be loaded: .*; save or fetch it again$"):
        _load_parts(Namespace(model="other", dtype="float32", text=None), model)


@pytest.mark.parametrize("offload", [True, False])
def test_a_model_is_put_on_its_device_or_offloaded_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: bool
) -> None:
    parts = dict.fromkeys(("sr256_unet", "sr1024_unet", "tokenizer", "text_encoder"))
    tiny_pipeline(base_unet=tiny_base(text_dim=None), **parts).save_pretrained(tmp_path)
    put: list[str] = []
    monkeypatch.setattr(ImagenPipeline, "to", lambda _, device, **__: put.append(device))
    monkeypatch.setattr("imagen.cli.model._device", lambda _: "cpu")
    args = parser().parse_args(["--model", str(tmp_path), "--dtype", "bfloat16", *(["--offload"] if offload else [])])
    pipe = load(args, find_model(str(tmp_path)), [])
    assert put == ["cpu"], "before it is offloaded, too"
    assert bool(getattr(pipe, "_all_hooks", [])) is offload
    assert pipe.base_unet.dtype == torch.bfloat16


def test_a_device_that_is_not_there_and_an_offload_that_does_nothing_are_told() -> None:
    assert _device(Namespace(device="cpu", offload=False)) == "cpu"
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert _device(Namespace(device=None, offload=False)) == expected
    with pytest.raises(ValueError, match="--device 'meta' is not there: .*; try --device cpu"):
        _device(Namespace(device="meta", offload=False))
    with pytest.raises(ValueError, match="--offload has no effect: the pictures are made on the CPU"):
        _device(Namespace(device="cpu", offload=True))


@pytest.mark.parametrize(("slot", "dropped"), [("base", True), ("base", False), ("sr256", True), ("sr256", None)])
def test_a_variance_is_left_behind_where_the_adapter_s_training_did(
    tmp_path: Path, slot: str, dropped: bool | None
) -> None:
    make = {"base": tiny_base, "sr256": tiny_sr}[slot]
    pipe = tiny_pipeline(**{f"{slot}_unet": make(out_channels=6)})
    network = make(out_channels=6)
    attach(network, 2, 4.0, ["to_q"])
    run = tmp_path / "run"
    if dropped is not None:
        record(run, slot, adapter_of="somewhere", drop_variance=dropped)
    (run / "model").mkdir(parents=True, exist_ok=True)
    save_adapter(run / "model" / WEIGHTS, dict(network.named_parameters()), 2, 4.0, ["to_q"])
    _load_adapters([str(run) if slot == "base" else f"{slot}={run}"], pipe)
    unet = getattr(pipe, f"{slot}_unet")
    assert unet.config.out_channels == (3 if dropped else 6)
    assert list(pipe._adapters) == [slot]


# --- prompts and options ----------------------------------------------------------------------------------------------


def test_a_prompt_that_is_no_text_is_named_by_its_number() -> None:
    assert read_prompts(Namespace(prompt=["a", "ein H\xe4uschen"], prompts=None)) == ["a", "ein H\xe4uschen"]
    for wrong, message in (
        ("a\udcffb", "is no text in this terminal's encoding"),
        ("\udfff", "is no text"),
        (" ", "is empty"),
    ):
        with pytest.raises(ValueError, match=f"^prompt 2 .*{message}"):
            read_prompts(Namespace(prompt=["a", wrong], prompts=None))


def test_one_stage_that_reads_text_wants_a_prompt(tmp_path: Path) -> None:
    stages = [record(tmp_path / slot, slot) for slot in ("base", "sr256")]
    args = Namespace(model="m")
    check_read(args, [], {}, stages)
    with pytest.raises(ValueError, match="model 'm' reads no text in base: leave the prompt out"):
        check_read(args, ["a"], {}, stages)
    config = stages[1].unet / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "text_dim": 16}))
    check_read(args, ["a"], {}, stages)
    with pytest.raises(ValueError, match="no prompt: write one in quotes"):
        check_read(args, [], {}, stages)


def test_the_earlier_name_of_an_option_of_compose_is_read() -> None:
    words = ["--base64", "--base64=a=b", "--base", "--base640", "x"]
    assert [_renamed(word) for word in words] == ["--base", "--base=a=b", "--base", "--base640", "x"]


def test_a_composed_pipeline_is_stored_in_the_dtype_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = dict.fromkeys(("tokenizer", "text_encoder", "sr256_unet", "sr1024_unet", "sr256_scheduler"))
    tiny_pipeline(**parts, base_unet=tiny_base(text_dim=None)).save_pretrained(tmp_path / "old")
    out = tmp_path / "new"
    assert compose(["--base", str(tmp_path / "old"), "--out", str(out), "--dtype", "bf16"]) == 0
    first, following = capsys.readouterr().out.splitlines()
    assert first == f"{out}: base_unet, base_scheduler"
    assert following == f'next: python sample.py "what to show" --model {out}'
    tensors = load_file(out / "base_unet" / "diffusion_pytorch_model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


def test_a_device_that_fails_is_one_line(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of everything\nand a long explanation")

    monkeypatch.setattr(ImagenPipeline, "to", fail)
    assert run("a", "--device", "cpu") == 2
    assert capsys.readouterr().err.endswith("cannot be put on 'cpu': out of everything\n")


def test_a_preset_acts_on_every_stage_of_a_model_that_had_others(tmp_path: Path) -> None:
    tiny_pipeline(sr1024_unet=None, sr1024_scheduler=None).save_pretrained(tmp_path / "model")
    words = ["a", "--model", str(tmp_path / "model"), "--out", str(tmp_path), "--device", "cpu"]
    assert main([*words, "--preset", "fewest-step"]) == 0
    settings = read_settings(tmp_path / "a_seed0.png")
    assert settings["steps"] == {"16": 20, "32": 15}
    assert settings["guidance"] == {"16": 7.0, "32": 4.0}
    assert settings["sampler"] == dict.fromkeys(("16", "32"), "dpm++")
    assert settings["scheduler"]["16"] == "ImagenDDPMScheduler", "the model's own"


def test_a_preset_that_says_nothing_of_a_stage_is_refused_before_the_model_is_loaded(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imagen.cli.sample.load", lambda *_: pytest.fail("loaded"))
    assert run("a", "--preset", "if") == 2
    assert (
        "preset 'if' is for DeepFloyd IF's stages and says nothing of sr1024; use balanced, fast"
        in capsys.readouterr().err
    )


def test_seeds_and_folders_that_cannot_be(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("a", "--seed", str(2**62 + 1)) == 2
    assert f"--seed is {2**62 + 1}; expected an integer from 0 to {2**62}" in capsys.readouterr().err
    for _ in range(2):
        assert out_folder(str(run.out / "deep" / "er")).is_dir()
    monkeypatch.setattr("imagen.disk.os.access", lambda *_: False)
    assert run("a") == 2
    assert f"--out '{run.out}' cannot be written to; give another folder" in capsys.readouterr().err


# --- batches and what is written --------------------------------------------------------------------------------------

SMALL = ("--size", "16", "--steps", "1", "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "batches", "columns"),
    [
        (["a", "two", "blue"], [1, 1, 1], 2),
        (["a", "two", "blue", "--batch-size", "2"], [2, 1], 2),
        (["a", "two", "--num-images", "3", "--batch-size", "8"], [6], 3),
    ],
)
def test_batches_and_the_grid(
    run: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], batches: list[int], columns: int
) -> None:
    original, calls = ImagenPipeline.__call__, []

    def spy(self: ImagenPipeline, **given: Any) -> Any:
        calls.append((len(given["prompt"]), len(given["generator"])))
        return original(self, **given)

    monkeypatch.setattr(ImagenPipeline, "__call__", spy)
    assert run(*words, *SMALL, "--grid", "--seed", "4") == 0
    assert calls == [(count, count) for count in batches]
    grid = run.out / "grid_seed4.png"
    rows = -(-sum(batches) // columns)
    height = 128 + strip("", 128).height
    assert Image.open(grid).size == (132 * columns + 4, (height + 4) * rows + 4)
    settings = read_settings(grid)
    assert (settings["seed"], settings["size"], len(settings["prompts"])) == (4, 16, sum(batches))
    assert settings["prompts"][0] == "a"
    first = np.asarray(Image.open(run.out / "a_seed4.png"))
    assert np.array_equal(np.asarray(Image.open(grid))[4:132:8, 4:132:8], first)


class Failing:
    """What sample.py sees of a pipeline whose call fails."""

    _execution_device = torch.device("cpu")

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, **_: Any) -> None:
        raise self.error

    def set_progress_bar_config(self, **_: Any) -> None:
        pass


FULL = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ("error", "size", "kind", "message"),
    [
        (FULL, 2, MemoryError, "2 pictures of 16 px do not fit into the memory of cpu; use a smaller --batch-size"),
        (FULL, 1, MemoryError, "1 pictures of 16 px .* cpu; use --dtype bfloat16 or a smaller --size"),
        (torch.OutOfMemoryError("CUDA"), 2, MemoryError, "do not fit into the memory of cpu"),
        (ValueError("numbers that are not finite"), 2, Stopped, "^numbers that are not finite$"),
        (RuntimeError("shapes do not match"), 2, RuntimeError, "^shapes do not match$"),
    ],
)
def test_what_ends_the_sampling_is_told_and_a_mistake_of_ours_is_shown_as_it_comes(
    tmp_path: Path, error: Exception, size: int, kind: type[Exception], message: str
) -> None:
    args = Namespace(batch_size=size, grid=False, image=None)
    writer = Writer(args, {"size": 16}, tmp_path, {})
    with pytest.raises(kind, match=message):
        sample(args, Failing(error), [Picture(word, 0) for word in ("a", "two")], {}, writer)  # type: ignore[arg-type]


def test_a_name_that_another_takes_meanwhile_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_text("another's")
    names = iter(["a", "a_2"])
    monkeypatch.setattr("imagen.cli.png.free_stem", lambda *_: next(names))
    path = write_png(Image.new("RGB", (2, 2)), tmp_path, "a", {"prompt": None, "seed": 3})
    assert path == tmp_path / "a_2.png"
    assert (tmp_path / "a.png").read_text() == "another's"
    assert read_settings(path) == {"prompt": None, "seed": 3}
    text = Image.open(path).text  # type: ignore[attr-defined]
    assert (text["Description"], text["Software"]) == ("", "imagen")


def test_a_picture_from_elsewhere_holds_no_settings(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}' holds no settings of sample.py"):
            read_settings(tmp_path / name)
