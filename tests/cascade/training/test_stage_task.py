"""A stage as a task: what is found before anything loads, what it tells, and what of it may change."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen.cascade.training import task as module
from imagen.cascade.training.config.run import LossPerLevelConfig, RunConfig, StageGridConfig, StageTrainConfig
from imagen.cascade.training.config.sections import (
    LoraConfig,
    LossConfig,
    SamplingConfig,
    ScheduleConfig,
    StageConfig,
    TextConfig,
)
from imagen.cascade.training.inputs.batches import Batch, draw_batch
from imagen.cascade.training.inputs.source import make_source
from imagen.cascade.training.start.origin import Origin, with_origin
from imagen.cascade.training.task import StageTask, check_before_loading
from imagen.data.config import DataConfig
from imagen.data.sources import collate
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.errors import ConfigError
from imagen.training.config.resumed import Changes
from imagen.training.processes import Processes
from imagen.training.randomness import draw_noise, row_seeds
from tests.factories import WIDTH, tiny_base

UNET: dict[str, Any] = {
    "kind": "BaseUNet", "model_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_levels": [1],
    "head_dim": 8, "norm_groups": 4, "text_dim": None,
}  # fmt: skip
RUN = RunConfig("run", unet=UNET, stage=StageConfig(size=8), grid=StageGridConfig(every=0))
READS = {**UNET, "text_dim": WIDTH}
START = StageTrainConfig(init_from="start")
ADAPTER = LoraConfig(2, targets=("to_q",))
V_PREDICTION = Origin(scheduler=dict(make_scheduler("ddim", CosineSchedule(), "v_prediction").config))


@pytest.mark.parametrize(("changes", "told"), [
    ({}, ""),
    ({"unet": {**UNET, "norm_groups": 5}}, "^unet: "),
    ({"train": StageTrainConfig(gradient_checkpointing=(2,))}, r"^train.gradient_checkpointing \[2\]: "),
    ({"train": START, "lora": LoraConfig(2, targets=("to_q", "to_w"))}, "^lora.targets: .*'to_w'"),
    ({"train": START, "lora": LoraConfig(2, targets=("to_q",))}, ""),
    ({"unet": {**UNET, "attention_levels": []}}, ""),  # without an adapter nobody looks for its layers
    ({"stage": StageConfig(size=8, loss=LossConfig("uniform", gamma=3.0))}, "^stage: gamma=3.0 has no effect"),
    ({"stage": StageConfig(size=8, schedule=ScheduleConfig("linear", max_log_snr=1.0))}, "^stage: "),
    ({"sampling": SamplingConfig(sampler="unipc", num_inference_steps="smart27")}, "^sampling: .*no list of timesteps"),
    ({"grid": StageGridConfig(every=1, cascade="/nowhere")}, "^grid.cascade: there is no folder"),
    ({"grid": StageGridConfig(every=0, cascade="/nowhere")}, ""),
    ({"unet": READS, "text": TextConfig("some/t5")}, ""),  # may be on the Hub
    ({"unet": READS, "text": TextConfig("/no/where")}, "text.encoder '/no/where' does not exist: give a folder or Hub"),
    ({"unet": READS, "text": TextConfig("./where")}, "text.encoder './where' does not exist"),
    ({"unet": READS, "text": TextConfig("~where")}, "text.encoder '~where' does not exist"),
    ({"unet": READS, "text": TextConfig("a/b/c")}, "text.encoder 'a/b/c' does not exist"),
    ({"unet": READS, "text": TextConfig("/no/where", cache="c")}, ""),  # a cache stands in for it
], ids=lambda part: part[:30] if isinstance(part, str) else "")  # fmt: skip
def test_what_is_wrong_is_found_before_anything_loads(changes: dict[str, Any], told: str) -> None:
    config = replace(RUN, **changes)
    if not told:
        return check_before_loading(config, Origin())
    with pytest.raises(ConfigError, match=told):
        check_before_loading(config, Origin())
    return None


def test_an_encoder_s_folder_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path), "./a", "a/b/c"):
        check_before_loading(replace(RUN, unet=READS, text=TextConfig(name)), Origin())


def test_all_weights_may_learn_to_be_another_stage_and_an_adapter_may_not() -> None:
    with pytest.warns(
        UserWarning, match="train.init_from 'start' was trained otherwise: stage.prediction_type is 'eps"
    ):
        check_before_loading(replace(RUN, train=START), V_PREDICTION)
    with pytest.raises(ConfigError, match="set stage.prediction_type v_prediction, as train.init_from 'start' was"):
        check_before_loading(replace(RUN, train=START, lora=ADAPTER), V_PREDICTION)
    fits = replace(RUN, train=START, stage=StageConfig(size=8, prediction_type="v_prediction"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_before_loading(fits, V_PREDICTION)
        check_before_loading(replace(fits, lora=ADAPTER), V_PREDICTION)


def test_what_a_run_tells_and_what_of_its_sections_may_change() -> None:
    task = StageTask(RUN)
    assert task.notes == ()
    assert (task.weights, task.groups) == ("unet", ("t0", "t1", "t2", "t3"))
    common = ("train.gradient_checkpointing", "sampling")
    assert task.changes == Changes((*common, "train.init_from"), ("text.encoder", "text.cache"))
    task.config = replace(task.config, train=START, lora=LoraConfig(2))
    assert task.changes == Changes(common, ("text.encoder", "text.cache")), "an adapter's network is kept nowhere"
    task.config = replace(task.config, train=replace(START, drop_variance=True))
    task.unet = tiny_base(text_dim=None)
    assert task.notes == (
        "the learned variance of train.init_from is dropped (6 -> 3 channels); the stage samples with the small fixed "
        "one",
    )


def test_a_run_whose_sampling_needs_a_weaker_network_says_so_and_how_to_sample() -> None:
    def told(rank: int | None = None, **sampling: Any) -> tuple[str, ...]:
        task.config = replace(RUN, sampling=SamplingConfig(**sampling), train=START, lora=LoraConfig(rank))
        return task.notes

    task = StageTask(RUN)
    (note,) = told(guidance="rescaled(phi=0.7)+auto")
    assert note.startswith(
        "sampling.guidance 'rescaled(phi=0.7)+auto' needs a weaker network, which a run's folder has"
    )
    assert "sample it with --guidance-method cfg" in note
    assert "pipe.register_modules(base_weak_unet=...)" in note
    assert "\n" not in note
    assert told(guidance="auto", guidance_scale=1.0) == ()  # off
    assert told(guidance="apg") == ()
    assert told(2, guidance="auto") == ()  # a pipeline that loads the adapter has settings of its own


def test_an_adapter_of_a_network_without_text_leaves_out_what_reads_text() -> None:
    pytest.importorskip("peft")
    without = with_origin(replace(RUN, train=START, lora=LoraConfig(2)))[0]
    assert without.lora.targets == ("to_q", "to_k", "to_v", "to_out.0")
    check_before_loading(without, Origin())
    named = replace(RUN, train=START, lora=LoraConfig(2, targets=("to_q", "add_k_proj")))
    with pytest.raises(ConfigError, match=r"^lora\.targets: no linear layer .* 'add_k_proj'; there are .*to_q"):
        check_before_loading(with_origin(named)[0], Origin())
    reading = with_origin(replace(RUN, unet={**RUN.unet, "text_dim": 8}, train=START, lora=LoraConfig(2)))[0]
    assert "add_k_proj" in reading.lora.targets
    assert with_origin(RUN)[0] == RUN


@pytest.mark.parametrize(("t", "group"), [(0.0, 0), (0.2499, 0), (0.25, 1), (0.5, 2), (0.75, 3), (0.9999, 3), (1.0, 3)])
def test_losses_are_told_apart_by_quarters_of_the_noise_level(t: float, group: int) -> None:
    batch = Batch(torch.zeros(1), torch.zeros(1), torch.tensor([0.1, t]), {})
    assert StageTask.group(None, batch).tolist() == [0, group]  # type: ignore[arg-type]


@pytest.mark.parametrize(("stratified", "dropout"), [(True, 0.0), (False, 0.75)])
def test_a_batch_is_drawn_as_the_run_says(stratified: bool, dropout: float) -> None:
    train = StageTrainConfig(seed=5, batch_size=8, stratified_t=stratified, dtype="float64")
    task = StageTask(replace(RUN, train=train, stage=StageConfig(size=8, text_dropout=dropout)))
    loaded = task.load(torch.device("cpu"), Processes(), None)
    assert loaded.module is task.unet
    raw = collate([loaded.source[index] for index in range(3)])  # type: ignore[index]
    batch = task.batch(raw, 11, range(4, 7))
    draws = draw_batch(5, 11, 8, dropout, stratified).rows(range(4, 7))
    assert torch.equal(batch.t, draws.t)
    assert batch.image.dtype == batch.noise.dtype == torch.float64
    assert torch.equal(batch.noise, draw_noise((3, 8, 8), 5, "image", 11, range(4, 7), torch.Generator()).double())
    assert batch.inputs["dropout_seeds"].tolist() == row_seeds(5, "network", 11, range(4, 7)).tolist()
    other = make_source(replace(task.config, train=replace(train, seed=6)))[0]  # type: ignore[index]
    assert not torch.equal(other.image, raw["image"][0]), "the pictures of the endless world are the seed's"


def test_the_processes_of_a_run_share_what_is_measured_and_drawn() -> None:
    held_out = LossPerLevelConfig(every=1, data=DataConfig(split="heldout"), samples=2, levels=3, batch_size=1)
    task, parts = StageTask(replace(RUN, validation=held_out)), []
    processes = Processes(0, 2, lambda part: parts.append(part) or torch.ones_like(part))  # type: ignore[func-returns-value]
    task.load(torch.device("cpu"), processes, None)
    assert task.grids.processes is processes
    record = task.measure(1)
    assert {*record.values()} == {1.0}, "what is told is what was added up"
    assert len(record) == 4
    (table,) = parts
    assert (table[:, 0] > 0).all()
    assert not table[:, 1].any(), "the other one's picture"
    alone = StageTask(RUN)
    alone.load(torch.device("cpu"), Processes(), None)
    with pytest.raises(AssertionError, match="nothing is measured without validation.every"):
        alone.measure(1)


def test_a_network_is_whitened_where_it_is_new_and_otherwise_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Any] = []
    monkeypatch.setattr(module, "fit_whitening", lambda unet, config, source, texts: fitted.append((unet, texts)))
    task = StageTask(RUN)
    saved = task.load(torch.device("cpu"), Processes(), None).module.state_dict()
    assert fitted == [(task.unet, task.texts)]
    task.load(torch.device("cpu"), Processes(), saved)
    assert len(fitted) == 1


@pytest.mark.parametrize("unconditional", ["zero", "empty"])
def test_tokens_are_the_loader_s_work_unless_captions_are_replaced_by_empty_ones(t5: str, unconditional: Any) -> None:
    text = TextConfig(t5, unconditional=unconditional)
    task = StageTask(replace(RUN, unet=READS, text=text, stage=StageConfig(size=8, text_dropout=0.5)))
    loaded = task.load(torch.device("cpu"), Processes(), None)
    raw = collate([loaded.source[number] for number in range(8)])
    ready = loaded.ready(raw)
    assert ("tokens" in ready) == (unconditional == "zero")
    made, wanted = (task.batch(given, 1, range(8)).inputs for given in (ready, raw))
    assert all(torch.equal(made[name], wanted[name]) for name in ("text", "text_mask"))
