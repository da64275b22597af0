"""What both trees are given: configurations of tiny runs, pictures to train on, and models in every stored format.

Everything is written down here in full, so that the inputs stay what they are however the code changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

BASE = {"kind": "BaseUNet", "model_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "head_dim": 8}
EFFICIENT = {"kind": "EfficientUNet", "channels": [8, 8], "num_res_blocks": [1, 1], "strides": [1, 2], "heads": 2}
WITHOUT_TEXT = {"text_dim": None, "text_pooling": "none"}
WITH_TEXT = {"encoder": "{t5}", "max_length": 24}

# One entry a kind of stage; between them they use both networks, every prediction, weight and optimizer, both ways to
# noise the low-resolution picture, crops, accumulation, validation and grids.
RUNS: dict[str, dict[str, Any]] = {
    "base, text, muon": {
        "stage": {
            "size": 8,
            "prediction_type": "sample",
            "schedule": {"kind": "cosine", "shift": 0.5},
            "loss": {"kind": "clamped_snr", "low": 0.05},
        },
        "unet": {**BASE, "text_dim": 192, "text_whitening": True, "text_pooling": "none", "qk_norm": True},
        "text": WITH_TEXT,
        "train": {"batch_size": 16},  # whitening wants two tokens a channel of the first half's captions
        "optim": {"lr": 1e-3, "muon_lr": 3e-3, "warmup": 2, "weight_decay": 0.01},
        "validation": {"every": 10, "samples": 4, "levels": 2, "data": {"kind": "shapes", "split": "heldout"}},
        "grid": {"every": 20, "prompts": ["a red circle"], "raw": True},
        "sampling": {"sampler": "ddim", "num_inference_steps": 3, "guidance_scale": 3.0},
    },
    "base, learned variance": {
        "stage": {"size": 8, "prediction_type": "epsilon", "schedule": {"kind": "linear"}},
        "unet": {**BASE, "text_dim": 192, "out_channels": 6, "text_norm": "group", "attention_levels": []},
        "text": {**WITH_TEXT, "padding": "visible", "unconditional": "empty", "lowercase": True},
        "optim": {"lr": 1e-3, "warmup": 2},
        "sampling": {"sampler": "ddpm", "num_inference_steps": 4, "guidance_scale": 2.0, "threshold_cap": 1.5},
    },
    "base, no text, accumulation": {
        "stage": {"size": 8, "prediction_type": "v_prediction", "loss": {"kind": "sigmoid", "per": "log_snr"}},
        "unet": {**BASE, **WITHOUT_TEXT, "patch_size": 2, "input_skip": True, "head_channels": 8, "coordinates": True},
        "train": {"accumulation": 2, "stratified_t": False},
        "optim": {"lr": 1e-3, "warmup": 2},
        "ema": {"decay": 0.9, "warmup": False},
    },
    "super-resolution, crop": {
        "stage": {
            "name": "sr256",
            "size": 16,
            "lowres_size": 8,
            "prediction_type": "v_prediction",
            "loss": {"kind": "min_snr"},
            "aug_schedule": {"kind": "cosine", "shift": 2.0},
        },
        "unet": {**EFFICIENT, "attention_levels": [1], "attention": "cross", "text_dim": 192, "input_skip": True},
        "text": WITH_TEXT,
        "data": {"kind": "shapes", "crop": 8},
        "optim": {"kind": "adafactor", "lr": 1e-2, "warmup": 2},
        "grid": {"every": 20, "count": 2},
        "sampling": {"sampler": "dpm++", "num_inference_steps": 3, "guidance_scale": 1.5, "lowres_consistency": 2},
    },
    "super-resolution, upsampled noise": {
        "stage": {"name": "sr256", "size": 16, "lowres_size": 8, "aug_space": "upsampled", "lowres_mode": "bilinear"},
        "unet": {**BASE, **WITHOUT_TEXT, "lowres_channels": 3, "attention_levels": [1]},
        "optim": {"lr": 1e-3, "warmup": 2},
    },
    "image to image, no text": {
        "stage": {"name": "sr256", "size": 8, "lowres_size": 8, "prediction_type": "sample"},
        "unet": {**EFFICIENT, **WITHOUT_TEXT, "attention_levels": [1], "attention": "self", "skip": "concat"},
        "data": {"kind": "folder", "path": "{pictures}/after", "conditioning": "{pictures}/before", "flip": True},
        "optim": {"kind": "adafactor", "momentum": 0.9, "lr": 1e-2, "warmup": 2},
        "grid": {"every": 20, "count": 2},
    },
}

# stage.json of an exported base stage, and the entries of a pipeline's model_index.json, as each format had them
STAGE_1: dict[str, Any] = {
    "size": 8,
    "lowres_size": None,
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
READING = {"padding": "visible", "null": "empty", "lowercase": True}


def _pipeline_stages(cell: int | None = None) -> dict[str, dict[str, Any]]:
    first = STAGE_1 if cell is None else {**STAGE_1, "lowres_consistency": 0}
    dynamic = {**first, "threshold": "dynamic", "threshold_p": 0.9, "aug_space": "lowres", "lowres_mode": "area"}
    dynamic |= {} if cell is None else {"lowres_consistency": cell}
    return {
        "base": {**first, "size": 64},
        "sr256": {**dynamic, "size": 256, "lowres_size": 64, "num_inference_steps": 2},
        "sr1024": {**first, "size": 1024, "lowres_size": 256, "threshold": "none"},
    }


# None takes the entry out of the file
PIPELINES: dict[str, dict[str, Any]] = {
    "0": {"format_version": None, "stages": None, "max_length": None, "text": None},
    "1": {"format_version": 1, "stages": _pipeline_stages(), "max_length": 17, "text": None},
    "2": {"format_version": 2, "stages": _pipeline_stages(), "max_length": 17, "text": READING},
    "3": {"format_version": 3, "stages": _pipeline_stages(cell=4), "max_length": 17, "text": READING},
}
STAGES: dict[str, dict[str, Any]] = {
    "1": {"format_version": 1, "stage": STAGE_1, "text": {}},
    "2": {"format_version": 2, "stage": STAGE_1, "text": READING},
    "3": {"format_version": 3, "stage": {**STAGE_1, "lowres_consistency": 0}, "text": READING},
}


def fill(tree: Any, places: Mapping[str, str]) -> Any:
    """`tree` with {name} in every text replaced by a path."""
    if isinstance(tree, Mapping):
        return {key: fill(value, places) for key, value in tree.items()}
    if isinstance(tree, list):
        return [fill(value, places) for value in tree]
    return tree.format(**places) if isinstance(tree, str) else tree


def write_configs(folder: Path, t5: Path) -> None:
    """Write a YAML file for each of `RUNS` into `folder`, and the pictures that one of them reads."""
    places = {"t5": str(t5), "pictures": str(folder / "pictures")}
    common = {"steps": 1, "batch_size": 4, "num_workers": 0, "log_every": 1, "dtype": "float64", "seed": 3}
    for name, run in RUNS.items():
        train = {**common, **run.get("train", {})}
        grid = {"every": 0, "num_inference_steps": 2, **run.get("grid", {})}
        config = {"run_dir": "unset", **fill(run, places), "train": train, "grid": grid}
        config["unet"].setdefault("norm_groups", 4)
        config["unet"].setdefault("attention_levels", [1])
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    rng = np.random.default_rng(0)
    for side in ("after", "before"):
        (folder / "pictures" / side).mkdir(parents=True)
        for number in range(8):
            picture = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8))
            picture.save(folder / "pictures" / side / f"{number}.png")


def _link(source: Path, target: Path) -> None:
    """The folder `source` at `target`, its files as links."""
    for path in filter(Path.is_file, source.rglob("*")):
        (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        (target / path.relative_to(source)).symlink_to(path.resolve())


def write_pipelines(folder: Path, model: Path) -> None:
    """The weights of the pipeline in `model` under an index of every format: `folder`/1, `folder`/2, ..."""
    for name, entries in PIPELINES.items():
        _link(model, folder / name)
        index = {**json.loads((model / "model_index.json").read_text(encoding="utf-8")), **entries}
        (folder / name / "model_index.json").unlink()
        kept = {key: value for key, value in index.items() if value is not None}
        (folder / name / "model_index.json").write_text(json.dumps(kept), encoding="utf-8")


def write_stages(folder: Path, model: Path, t5: Path) -> None:
    """The exported base stage in `model` (run/model) under a stage.json of every format: `folder`/1, `folder`/2, ..."""
    for name, entries in STAGES.items():
        _link(model, folder / name)
        record = {"name": "base64", "step": 1, "images": 4, **entries}
        record["text"] = {"encoder": str(t5), "max_length": 24, **entries["text"]}
        (folder / name / "stage.json").unlink()
        (folder / name / "stage.json").write_text(json.dumps(record), encoding="utf-8")
