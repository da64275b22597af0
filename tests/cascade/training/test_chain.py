"""Which stages are one pipeline, and what it takes of each: the odd one is the last of them everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen.cascade.training.compose import check_out, compose, read_source, save
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.errors import ConfigError
from imagen.stages.folder import SavedStage
from imagen.stages.model import check_chain
from imagen.stages.spec import SLOTS, StageDefaults
from imagen.text.reading import TextDefaults
from tests.factories import (
    SIZES,
    WIDTH,
    save_stage,
    tiny_base,
    tiny_clip,
    tiny_clip_tokenizer,
    tiny_pipeline,
    tiny_sr,
)

BELOW = (None, *SIZES)
VISIBLE = TextDefaults("visible")


def stages(**changes: dict[str, Any]) -> dict[str, SavedStage]:
    """The three stages as they are read, with fields of some of them changed."""
    found = {}
    for slot, size, low in zip(SLOTS, SIZES, BELOW, strict=False):
        where = Path(slot)
        stage = SavedStage(slot, StageDefaults(size=size, lowres_size=low), where, where, TextDefaults(), 16, "t5")
        found[slot] = replace(stage, **changes.get(slot, {}))
    return found


@pytest.mark.parametrize(("changes", "told"), [
    ({}, ""),
    ({"sr1024": {"defaults": StageDefaults(size=64, lowres_size=16)}}, "sr1024 starts from 16 px but sr256 makes 32"),
    ({"sr256": {"defaults": StageDefaults(size=32, lowres_size=32)}}, "sr256 starts from 32 px but base makes 16 px"),
    ({"sr1024": {"adapter_of": "m"}}, "sr1024 is an adapter of 'm', not a network: load it into a pipeline"),
    ({"base": {"adapter_of": "m"}}, "base is an adapter of 'm'"),
    ({"sr1024": {"text": VISIBLE}}, "base reads text as .*masked.*, sr1024 as .*visible.*: train one anew"),
    ({"sr256": {"text": TextDefaults(lowercase=True)}}, "base reads text as .*, sr256 as"),
    ({"sr256": {"conditions": {"label": 1}}, "sr1024": {"conditions": {"label": 2}}},
     "sr1024 was trained with label 2, a stage before it with 1"),
    ({"base": {"conditions": {"a": 1}}, "sr1024": {"conditions": {"b": 1, "a": 2}}}, "sr1024 was trained with a 2"),
    ({"base": {"conditions": {"a": 1}}, "sr1024": {"conditions": {"b": 2, "a": 1}}}, ""),
    ({"sr256": {"max_length": 99, "encoder": "other", "drop_variance": True}}, ""),
])  # fmt: skip
def test_stages_that_follow_each_other_and_mean_the_same_are_a_chain(changes: dict[str, Any], told: str) -> None:
    if not told:
        return check_chain(stages(**changes))
    with pytest.raises(ConfigError, match=told):
        check_chain(stages(**changes))
    return None


def test_an_upper_part_of_the_cascade_is_one_and_every_stage_alone() -> None:
    every = stages()
    for slots in (("sr256", "sr1024"), ("sr1024",), ("base",)):
        check_chain({slot: every[slot] for slot in slots})


NETWORKS = {"base": tiny_base, "sr256": tiny_sr, "sr1024": tiny_sr}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Three runs of stages without text, each with numbers of its own."""
    for number, (slot, size, low) in enumerate(zip(SLOTS, SIZES, BELOW, strict=False), start=1):
        rule = make_scheduler("ddim" if number == 2 else "ddpm", CosineSchedule(), "v_prediction")
        more = {} if low is None else {"aug_level": number / 10}
        defaults = StageDefaults(size=size, lowres_size=low, num_inference_steps=number, **more)  # type: ignore
        network = NETWORKS[slot](number, text_dim=None)
        length = (9, 21, 7)[number - 1]
        save_stage(tmp_path / slot / "model", slot, network, rule, defaults=defaults, max_length=length)
    return {slot: tmp_path / slot for slot in SLOTS}


def test_each_stage_keeps_its_network_scheduler_and_settings_in_whatever_order_they_are_given(
    runs: dict[str, Path],
) -> None:
    pipe = compose({slot: runs[slot] for slot in reversed(SLOTS)})
    assert list(pipe.stage_defaults) == [*SLOTS]
    assert [stage.num_inference_steps for stage in pipe.stage_defaults.values()] == [1, 2, 3]
    assert [stage.aug_level for stage in list(pipe.stage_defaults.values())[1:]] == [0.2, 0.3]
    assert [type(getattr(pipe, f"{slot}_scheduler")).__name__[:12] for slot in SLOTS] == [
        "ImagenDDPMSc", "DDIMSchedule", "ImagenDDPMSc",
    ]  # fmt: skip
    for number, slot in enumerate(SLOTS, start=1):
        own = NETWORKS[slot](number, text_dim=None).state_dict()
        assert all(torch.equal(v, own[name]) for name, v in getattr(pipe, f"{slot}_unet").state_dict().items())
    assert pipe.config["max_length"] == 21, "what one stage can read the others can"
    assert (pipe.text_encoder, pipe.tokenizer) == (None, None)


def test_a_stage_is_asked_for_by_its_slot_or_told_where_it_is(runs: dict[str, Path]) -> None:
    assert read_source("sr256", runs["sr256"]).slot == "sr256"
    for folder in (runs["base"], runs["base"] / "model"):
        with pytest.raises(ConfigError, match="--sr1024 .*holds the stage base: pass it as --base"):
            read_source("sr1024", folder)
    with pytest.raises(ConfigError, match="^--base: there is no folder"):
        read_source("base", Path("/nowhere"))
    with pytest.raises(ConfigError, match="no stage given: pass at least one of --base, --sr256, --sr1024"):
        compose({})


def with_text(folder: Path, slot: str, encoder: str | None, width: int | None, **more: Any) -> Path:
    sizes = {"size": 16} if slot == "base" else {"size": 32, "lowres_size": 16}
    rule = make_scheduler("ddim", CosineSchedule(), "sample")
    network = NETWORKS[slot](text_dim=width)
    save_stage(folder, slot, network, rule, defaults=StageDefaults(**sizes), encoder=encoder, **more)  # type: ignore
    return folder


def test_the_text_encoder_is_the_stages_or_the_one_that_is_asked_for_and_reads_what_they_need(
    t5: str, tmp_path: Path
) -> None:
    base, sr = with_text(tmp_path / "a", "base", t5, WIDTH), with_text(tmp_path / "b", "sr256", "zz/other", None)
    two = {"base": base, "sr256": sr}
    with pytest.raises(ConfigError, match=rf"different encoders \({t5}, zz/other\): pass --text"):
        compose(two)
    pipe = compose(two, text=t5)
    assert pipe.text_encoder.config.d_model == WIDTH
    assert compose({"base": base}).tokenizer is not None
    with pytest.raises(ConfigError, match=r"the text encoder has width 16, sr256 needs 8: pass --text"):
        compose({"base": base, "sr256": with_text(tmp_path / "c", "sr256", t5, 8)})
    with pytest.raises(ConfigError, match="^--text: no text encoder at '/nowhere'"):
        compose(two, text="/nowhere")
    tiny_clip(positions=20).save_pretrained(tmp_path / "clip")
    tiny_clip_tokenizer().save_pretrained(tmp_path / "clip")
    clip = str(tmp_path / "clip")
    short = with_text(tmp_path / "short", "sr256", clip, WIDTH, max_length=20)
    assert compose({"sr256": short}).config["max_length"] == 20
    long = with_text(tmp_path / "long", "base", clip, WIDTH, max_length=21)
    with pytest.raises(ConfigError, match="^--text: .*21"):
        compose({"base": long, "sr256": short})


BASE_ALONE: dict[str, Any] = {
    "tokenizer": None, "text_encoder": None, "stages": {"base": {"size": 16}},
    **{f"{slot}_{part}": None for slot in ("sr256", "sr1024") for part in ("unet", "scheduler")},
}  # fmt: skip


def test_a_pipeline_is_written_over_another_part_by_part_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "model"
    for word in ("partial", "replaced"):  # of a writer that was killed
        (tmp_path / "deep" / f"model.{word}" / "base_unet").mkdir(parents=True)
    first, second = (tiny_pipeline(base_unet=tiny_base(seed), **BASE_ALONE) for seed in (1, 9))
    save(first, out)
    (out / "README.md").write_text("a card")
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    save(second, out)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]
    found = type(second).from_pretrained(out).base_unet.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in second.base_unet.state_dict().items())


def test_a_pipeline_that_cannot_be_written_leaves_the_old_one_and_nothing_beside(tmp_path: Path) -> None:
    pipe, out = tiny_pipeline(**BASE_ALONE), tmp_path / "model"
    save(pipe, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(folder: Path, **_: Any) -> None:
        (folder / "base_unet").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    pipe.save_pretrained = full
    with pytest.raises(ConfigError, match=rf"--out '{out}' cannot be written: .*No space left"):
        save(pipe, out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("there", "keep"), [
    (["sr1024_unet", "sr1024_scheduler"], "add --sr1024 {out}, or clear it first"),
    (["sr1024_scheduler", "sr1024_unet"], "add --sr1024 {out}"),
    (["tokenizer"], "add another --out, or clear it first"),
    (["other"], ""), (["base_unet"], ""), ([], ""),
])  # fmt: skip
def test_parts_that_a_new_pipeline_lacks_are_not_left_behind(tmp_path: Path, there: list[str], keep: str) -> None:
    pipe = tiny_pipeline(sr1024_unet=None, sr1024_scheduler=None, tokenizer=None, text_encoder=None)
    out = tmp_path / "model"
    for name in there:
        (out / name).mkdir(parents=True)
    if not keep:
        out.mkdir(exist_ok=True)
        (out / "model_index.json").write_text('{"stages": {}}')
        check_out(pipe, out)
        (out / "model_index.json").unlink()
        (tmp_path / "model.partial").mkdir()  # of a call that was killed
        return check_out(pipe, out)
    with pytest.raises(ConfigError, match=rf"holds \w+, which this pipeline lacks: {keep.format(out=out)}"):
        check_out(pipe, out)
    return None
