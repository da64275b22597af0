"""A hundred damaged checkpoints: each is refused in one line that names what is wrong, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagen.convert.__main__ import main

Damage = Callable[[Path], str]
"""Damages a folder with I/ and II/, and returns what the message must name."""
WEIGHTS = {
    "I/unet": "diffusion_pytorch_model.safetensors",
    "II/unet": "diffusion_pytorch_model.safetensors",
    "I/text_encoder": "model.safetensors",
}


def rewrite(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # it is a link to the shared checkpoint's file
    path.write_bytes(content)


def tensors(place: str, seed: int, change: Callable[[dict[str, Any], str], str]) -> Damage:
    """Damage to one tensor, drawn by ``seed``; ``change`` returns the name that must be told."""

    def damage(folder: Path) -> str:
        path = folder / place / WEIGHTS[place]
        values = load_file(path)
        name = random.Random(seed).choice(sorted(set(values) - {"encoder.embed_tokens.weight"}))
        told = change(values, name)
        path.unlink()
        save_file(values, path, {"format": "pt"})
        return told

    return damage


def drop(values: dict[str, Any], name: str) -> str:
    del values[name]
    return name


def rename(values: dict[str, Any], name: str) -> str:
    values[f"model.{name}"] = values.pop(name)
    return name


def add(values: dict[str, Any], name: str) -> str:
    values[f"{name}_extra"] = torch.zeros(3)
    return f"{name}_extra"


def reshape(values: dict[str, Any], name: str) -> str:
    values[name] = torch.cat([values[name], values[name][:1]])
    return name


def flatten(values: dict[str, Any], name: str) -> str:
    values[name] = values[name].reshape(1, -1).clone()
    return name


def quantize(values: dict[str, Any], name: str) -> str:
    values[name] = (values[name] * 10).to(torch.int8)
    return name


def cut(place: str, share: float) -> Damage:
    def damage(folder: Path) -> str:
        path = folder / place / WEIGHTS[place]
        whole = path.read_bytes()
        rewrite(path, whole[: int(len(whole) * share)])
        return WEIGHTS[place]

    return damage


def replaced(place: str, content: bytes) -> Damage:
    def damage(folder: Path) -> str:
        rewrite(folder / place, content)
        return Path(place).name

    return damage


def removed(place: str) -> Damage:
    def damage(folder: Path) -> str:
        (folder / place).unlink()
        return Path(place).name

    return damage


def pickled(place: str, keep_name: bool) -> Damage:
    def damage(folder: Path) -> str:
        buffer = io.BytesIO()
        torch.save({"weight": torch.zeros(3)}, buffer)
        path = folder / place / WEIGHTS[place]
        path.unlink()
        (path if keep_name else path.with_suffix(".bin")).write_bytes(buffer.getvalue())
        return "is a pickle"

    return damage


def entry(place: str, name: str, value: Any) -> Damage:
    def damage(folder: Path) -> str:
        path = folder / place
        config = json.loads(path.read_text())
        config[name] = value
        rewrite(path, json.dumps(config).encode())
        return name.removeprefix("_")

    return damage


LATENT = ["CrossAttnDownBlock2D", "DownBlock2D"]
UNET_ENTRIES: list[tuple[str, Any]] = [
    ("in_channels", 4),
    ("out_channels", 3),
    ("down_block_types", LATENT),
    ("up_block_types", ["ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"]),
    ("mid_block_type", "UNetMidBlock2DCrossAttn"),
    ("cross_attention_norm", "layer_norm"),
    ("cross_attention_dim", [64, 32]),
    ("addition_embed_type", None),
    ("encoder_hid_dim", None),
    ("encoder_hid_dim_type", "image_proj"),
    ("attention_head_dim", [8, 16]),
    ("block_out_channels", [16, 40]),
    ("block_out_channels", "16, 32"),
    ("layers_per_block", [1, 1, 1]),
    ("act_fn", "relu"),
    ("class_embed_type", "projection"),
    ("norm_num_groups", 5),
    ("norm_eps", 1e-6),
    ("resnet_time_scale_shift", "default"),
    ("resnet_out_scale_factor", 0),
    ("time_embedding_act_fn", "silu"),
    ("only_cross_attention", True),
    ("time_embedding_type", "fourier"),
    ("sample_size", None),
    ("dropout", "none"),
    ("no_such_option", 1),
]


def damages() -> Iterator[tuple[str, Damage]]:
    for change, counts in ((drop, (7, 6, 2)), (rename, (2, 2, 1)), (add, (2, 2, 1)), (reshape, (6, 5, 2))):
        for place, count in zip(WEIGHTS, counts, strict=True):
            for seed in range(count):
                yield f"{change.__name__} {place} {seed}", tensors(place, seed, change)
    for place in WEIGHTS:
        yield f"flatten {place}", tensors(place, 9, flatten)
        yield f"quantize {place}", tensors(place, 10, quantize)
        for share in (0.0, 0.001, 0.5, 0.999):
            yield f"cut {place} at {share}", cut(place, share)
        yield f"pickle as safetensors {place}", pickled(place, True)
        yield f"pickle alone {place}", pickled(place, False)
    for name, value in UNET_ENTRIES:
        yield f"unet {name}={value}", entry("I/unet/config.json", name, value)
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        yield f"no {name}", removed(f"I/{name}")
        yield f"broken {name}", replaced(f"I/{name}", b'{"half": ')
    yield "no noising scheduler", removed("II/image_noising_scheduler/scheduler_config.json")
    latent = entry("I/model_index.json", "_class_name", "StableDiffusionPipeline")
    yield "a latent-diffusion pipeline", lambda folder: latent(folder) and "is of a StableDiffusionPipeline"
    yield (
        "a pointer",
        replaced("I/unet/diffusion_pytorch_model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
    )
    yield "v prediction", entry("I/scheduler/scheduler_config.json", "prediction_type", "v_prediction")
    yield "another scheduler", entry("I/scheduler/scheduler_config.json", "_class_name", "DDIMScheduler")
    yield "100 levels", entry("I/scheduler/scheduler_config.json", "num_train_timesteps", 100)
    yield "linear noise", entry("II/image_noising_scheduler/scheduler_config.json", "beta_schedule", "linear")
    yield "noise of its own", entry("II/image_noising_scheduler/scheduler_config.json", "trained_betas", [0.1] * 1000)
    second = entry("I/model_index.json", "_class_name", "IFSuperResolutionPipeline")
    yield "the other stage's pipeline", lambda folder: second(folder) and "in_channels is 3, which does not fit the IFS"
    yield "text too wide", entry("I/text_encoder/config.json", "d_model", 24)


ALL = dict(damages())


def test_there_are_a_hundred() -> None:
    assert len(ALL) >= 100


@pytest.mark.parametrize("name", ALL)
def test_damage_is_one_clear_line(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    for path in checkpoint.rglob("*"):
        if path.is_file() and not {"safety_checker", "feature_extractor", "watermarker"} & set(path.parts):
            target = tmp_path / "source" / path.relative_to(checkpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    told = ALL[name](tmp_path / "source")
    capfd.readouterr()
    sources = [str(tmp_path / "source" / stage) for stage in ("I", "II")]
    code = main(["deepfloyd-if", *sources, str(tmp_path / "model")])
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("[transformers]")]
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("imagen.convert: error: ")
    assert told in lines[0], lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_copy_that_breaks_off_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imagen.convert.folder.shutil.copyfile", full)
    assert main(["deepfloyd-if", str(checkpoint / "II"), str(tmp_path / "model")]) == 1
    assert "No space left on device; nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_already_there_is_not_touched(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["deepfloyd-if", str(checkpoint / "II"), str(tmp_path)]) == 2
    assert "is already there" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_variant_that_is_not_there(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deepfloyd-if", str(checkpoint / "I"), str(tmp_path / "new"), "--variant", "fp16"]) == 2
    error = capsys.readouterr().err
    assert "unet has no fp16 weights, only diffusion_pytorch_model.safetensors: leave --variant out" in error
    assert not (tmp_path / "new").exists()


def test_the_same_stage_twice(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = [str(checkpoint / "II")] * 2
    assert main(["deepfloyd-if", *twice, str(tmp_path / "model")]) == 2
    assert "are both stage II; give one of each" in capsys.readouterr().err
