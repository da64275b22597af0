"""An ImagenPipeline folder -> folders that diffusers' IFPipeline and IFSuperResolutionPipeline load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler, UNet2DConditionModel, __version__

from imagen.convert.configs import unet2d_config
from imagen.convert.deepfloyd_if import DIFFUSERS_STEM, MAX_LENGTH, SHARED, SLOT_OF, TEXT, on_meta, shapes
from imagen.convert.folder import check_new, copy_component, copy_licences, new_folder
from imagen.convert.weights import Weights, check_weights, copy_weights, read_json, read_weights, write_json
from imagen.stages.folder import SavedStage, read_index, read_model
from imagen.stages.spec import StageDefaults

PIPELINES = {slot: name for name, slot in SLOT_OF.items()}
FOLDERS = {"base": "IF-I", "sr256": "IF-II"}


def export(source: Path, target: Path) -> list[str]:
    """Write ``target/IF-I`` and ``target/IF-II``, those of the stages that are there; all of it, or nothing.

    Returns:
        the names of the folders written.

    Raises:
        ValueError: no stage that IF's pipelines could hold, or weights that do not fit; naming what is needed.
    """
    check_new(target)
    saved = {slot: stage for slot, stage in read_model(source).items() if slot in FOLDERS}
    stages = {slot: stage.defaults for slot, stage in saved.items()}
    index = read_index(source)
    if not stages:
        raise ValueError(f"{source} holds no base or sr256 stage; IF's pipelines have no others")
    shared = {name: entry for name in SHARED if isinstance(entry := index.get(name), list) and entry[0] is not None}
    encoder = shared.get("text_encoder", [None, "T5EncoderModel"])[1]
    if encoder != "T5EncoderModel":
        raise ValueError(f"{source}: text_encoder is a {encoder}; IF's pipelines read text with a T5EncoderModel")
    unets = {slot: _unet(source, slot, stage) for slot, stage in stages.items()}
    schedulers = {slot: _scheduler(source, slot, stage) for slot, stage in stages.items()}
    _check_text(source, next(iter(saved.values())))
    with new_folder(target) as folder:
        for slot in stages:
            place = folder / FOLDERS[slot]
            (place / "unet").mkdir(parents=True)
            config, weights = unets[slot]
            write_json(place / "unet" / "config.json", config)
            copy_weights(weights, place / "unet")
            schedulers[slot].save_pretrained(place / "scheduler")
            if slot == "sr256":
                noising = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
                noising.save_pretrained(place / "image_noising_scheduler")
            for name in shared:
                stem = SHARED[name]
                copy_component(source / name, place / name, None if stem is None else read_weights(source / name, stem))
            write_json(place / "model_index.json", _index(slot, shared))
            copy_licences([source], place)
    return [FOLDERS[slot] for slot in stages]


def _check_text(source: Path, stage: SavedStage) -> None:
    """Raises ValueError unless text is read as IF's pipelines read it, whatever a folder says."""
    found = {**stage.text.to_dict(), "max_length": stage.max_length}
    for name, value in {**TEXT, "max_length": MAX_LENGTH}.items():
        if found[name] != value:
            raise ValueError(
                f"{source}: text is read with {name} {found[name]!r}, and IF's pipelines have {value!r}; only stages "
                "trained that way can go back"
            )


def _unet(source: Path, slot: str, stage: StageDefaults) -> tuple[dict[str, Any], Weights]:
    """diffusers' configuration of a network, and its weights checked against that."""
    where = source / f"{slot}_unet" / "config.json"
    stored = read_json(where)
    if stored.get("_class_name") != "BaseUNet":
        raise ValueError(f"{where}: {stored.get('_class_name')} is no network that IF's pipelines hold; BaseUNet is")
    config = unet2d_config(stored, stage.size, str(where))
    if bool(stored["lowres_channels"]) != (slot == "sr256"):
        raise ValueError(f"{where}: lowres_channels is {stored['lowres_channels']}, which does not fit the slot {slot}")
    weights = read_weights(where.parent, DIFFUSERS_STEM)
    check_weights(weights, shapes(on_meta(UNet2DConditionModel, where, **config)))
    return {"_class_name": "UNet2DConditionModel", "_diffusers_version": __version__, **config}, weights


def _scheduler(source: Path, slot: str, stage: StageDefaults) -> Any:
    """A DDPMScheduler that thresholds as the stage's defaults say; diffusers' pipelines leave that to the scheduler."""
    where = source / f"{slot}_scheduler" / "scheduler_config.json"
    config = read_json(where)
    if config.get("_class_name") not in ("DDPMScheduler", "ImagenDDPMScheduler") or config.get("gamma"):
        raise ValueError(f"{where}: expected a DDPMScheduler, as IF's pipelines have, and no gamma")
    if config.get("prediction_type") != "epsilon":
        raise ValueError(
            f"{where}: prediction_type is {config.get('prediction_type')!r}; IF's pipelines need 'epsilon'"
        )
    if slot == "sr256" and (stage.aug_space != "upsampled" or dict(stage.aug_schedule) != {"kind": "cosine_discrete"}):
        raise ValueError(
            f"{source}: stage sr256 has aug_space {stage.aug_space!r} and aug_schedule {dict(stage.aug_schedule)}; "
            "expected 'upsampled' and cosine_discrete, as IF's pipeline has"
        )
    if stage.lowres_consistency:
        raise ValueError(
            f"{source}: stage {slot} has lowres_consistency {stage.lowres_consistency}, which diffusers' pipelines "
            "lack; set it to 0 first (set_stage_defaults)"
        )
    if stage.threshold == "dynamic" and stage.threshold_cap is None:
        raise ValueError(f"{source}: stage {slot} has threshold_cap null; diffusers' schedulers need a number")
    known = {name: value for name, value in config.items() if not name.startswith("_") and name != "gamma"}
    thresholding = {
        "thresholding": stage.threshold == "dynamic",
        "clip_sample": {"static": True, "none": False}.get(stage.threshold, config.get("clip_sample", True)),
        "dynamic_thresholding_ratio": stage.threshold_p,
        "sample_max_value": 1.0 if stage.threshold_cap is None else stage.threshold_cap,
    }
    return DDPMScheduler(**{**known, **thresholding})


def _index(slot: str, shared: dict[str, Any]) -> dict[str, Any]:
    scheduler = ["diffusers", "DDPMScheduler"]
    return {
        "_class_name": PIPELINES[slot],
        "_diffusers_version": __version__,
        **{name: shared.get(name, [None, None]) for name in SHARED},
        "requires_safety_checker": "safety_checker" in shared,
        "scheduler": scheduler,
        **({"image_noising_scheduler": scheduler} if slot == "sr256" else {}),
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
