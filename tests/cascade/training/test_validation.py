"""The held-out loss: of the average, the same on any number of processes, and without a trace in the training."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imagen.cascade.training.config.run import LossPerLevelConfig, RunConfig, StageTrainConfig
from imagen.cascade.training.config.sections import ScheduleConfig, ScoresConfig, StageConfig
from imagen.cascade.training.inputs.batches import BatchMaker
from imagen.cascade.training.inputs.source import make_conditions
from imagen.cascade.training.inputs.texts import Texts
from imagen.cascade.training.objective import Objective
from imagen.cascade.training.start.network import make_unet
from imagen.cascade.training.task import StageTask
from imagen.cascade.training.validation import Validation, validation_source
from imagen.data.config import DataConfig
from imagen.data.sources import Note
from imagen.errors import ConfigError
from imagen.evaluation.curves import read_metrics as read_curve
from imagen.training.processes import Processes
from imagen.training.trainer import Trainer
from tests.factories import redraw

HELD_OUT = {"kind": "shapes", "split": "heldout"}
CHANGES = {
    "validation": {"every": 2, "samples": 7, "levels": 3, "batch_size": 2, "data": HELD_OUT},
    "unet.dropout": 0.2,
}
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"


def make(settings: RunConfig) -> Validation:
    device = torch.device("cpu")
    conditions = make_conditions(settings, Texts(settings).load(device))
    return Validation(settings, Objective(settings.stage), BatchMaker(conditions, 0, torch.float32, device))


def redrawn(settings: RunConfig):
    """A network of which every layer counts, so that dropout would show."""
    return redraw(make_unet(settings), 1)


def test_two_processes_measure_what_one_does(config):
    settings = config(**CHANGES)
    unet = redrawn(settings).train()
    whole = make(settings).table(unet, Processes())
    assert unet.training
    assert (whole > 0).all()
    parts = [make(settings).table(unet.eval(), Processes(rank, 2)) for rank in range(2)]
    assert all((part > 0).any() for part in parts)
    assert not any(((parts[0] > 0) & (parts[1] > 0)).flatten().tolist())
    assert torch.equal(whole, parts[0] + parts[1])


def test_the_seed_alone_decides(config):
    settings = config(**CHANGES)
    unet = redrawn(settings)
    first = make(settings)
    torch.manual_seed(5)
    table = first.table(unet, Processes())
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1)), "nothing is drawn from torch's own generator"
    assert torch.equal(table, first.table(unet, Processes()))
    other = replace(settings, train=replace(settings.train, seed=9, batch_size=2))
    assert torch.equal(table, make(other).table(unet, Processes())), "nor from the run's seed"
    reseeded = replace(settings, validation=replace(settings.validation, seed=1))
    assert not torch.equal(table, make(reseeded).table(unet, Processes()))


def test_every_picture_meets_every_level(config):
    settings = config(**CHANGES)
    validation, seen = make(settings), []

    def spy(unet, batch):
        seen.append((batch.t, batch.image, batch.noise))
        return batch.t

    validation.objective = spy  # type: ignore[assignment]
    table = validation.table(make_unet(settings), Processes())
    levels = torch.tensor([1 / 6, 3 / 6, 5 / 6], dtype=torch.float64)
    assert torch.equal(validation.t, levels)
    torch.testing.assert_close(table, levels[:, None].expand(3, 7))
    pictures = torch.cat([image for t, image, _ in seen if t[0] < 0.2])
    held = validation.source
    assert torch.equal(pictures, torch.stack([held[index].image for index in range(7)]))
    assert len({tuple(noise.flatten().tolist()) for _, _, noises in seen for noise in noises}) == 21
    assert not any(validation._draws(level, range(7)).drop.any() for level in range(3))
    record = validation.record(table)
    assert record["val_loss"] == pytest.approx(0.5)
    log_snr = [float(key.removeprefix("val_loss/log_snr_")) for key in list(record)[1:]]
    assert list(record.values())[1:] == pytest.approx(levels.tolist())
    torch.testing.assert_close(
        Objective(settings.stage).schedule.log_snr(levels), torch.tensor(log_snr).double(), atol=0.005, rtol=0
    )


def test_training_does_not_notice(config, read_metrics, tmp_path):
    quiet = config(**{**CHANGES, "validation.every": 0}, run_dir=str(tmp_path / "quiet"))
    watched = replace(config(**CHANGES), run_dir=str(tmp_path / "watched"))
    for settings in (quiet, watched):
        Trainer(StageTask(settings)).fit()
    assert (tmp_path / "quiet" / WEIGHTS).read_bytes() == (tmp_path / "watched" / WEIGHTS).read_bytes()
    lines = read_metrics(watched.run_dir)
    assert [line for line in lines if "loss" in line] == read_metrics(quiet.run_dir)
    measured = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in measured] == [2, 4, 6]
    # and what it measured is the exported average
    unet = make_unet(watched)
    unet.load_state_dict(load_file(tmp_path / "watched" / WEIGHTS))
    validation = make(watched)
    assert measured[-1] == {"step": 6, **validation.record(validation.table(unet, Processes()))}
    path = Path(watched.run_dir) / "metrics.jsonl"
    ((_, values),) = read_curve(path, "val_loss").values()
    assert values == [line["val_loss"] for line in measured]
    assert list(read_curve(path, "val_loss/")) == validation.keys
    with pytest.raises(ValueError, match="no values that begin with 'val_lost/'"):
        read_curve(path, "val_lost/")


def test_super_resolution_has_the_same_noise_on_its_input_every_time(config):
    settings = config(
        **{
            "stage": {"name": "sr256", "size": 16, "lowres_size": 8, "prediction_type": "v_prediction"},
            "unet.lowres_channels": 3,
            "validation": CHANGES["validation"],
        }
    )
    unet = redrawn(settings)
    table = make(settings).table(unet, Processes())
    assert torch.equal(table, make(settings).table(unet, Processes()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation.every": 5}, "validation.every 5, but no validation.data: name the held-out pictures"),
        ({"validation.every": 5, "validation.data": {"kind": "folder"}}, "data.path is missing"),
        ({"validation.levels": 0}, "validation.levels 0 must be positive"),
        (
            {"validation.data": {"kin": "shapes"}},
            "unknown key 'validation.data.kin' .* did you mean 'validation.data.kind'",
        ),
        (
            {"data": {"kind": "folder", "path": "x"}, "validation.data": {"kind": "folder", "path": "x"}},
            "validation.data equals data: these pictures are trained on",
        ),
    ],
    ids=str,
)
def test_mistakes_are_told_in_one_line(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_too_few_pictures_or_a_missing_folder_are_told_before_training(config, tmp_path):
    folder = tmp_path / "held"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    held = {"every": 1, "samples": 4, "data": {"kind": "folder", "path": str(folder)}}
    with pytest.raises(ConfigError, match="validation.samples 4 is more than the 1 pictures of validation.data"):
        Trainer(StageTask(config(validation=held)))
    held["data"] = {"kind": "folder", "path": str(tmp_path / "nowhere")}
    with pytest.raises(ConfigError, match="^validation.data: "):
        Trainer(StageTask(config(validation=held)))


def test_what_is_passed_over_is_told_once_and_levels_that_are_one_are_refused(config):
    settings = config(**CHANGES)
    validation = make(settings)
    skipped, repaired = Note("a.png", "skipped", "is empty"), Note("b.png", "repaired", "turned")
    with pytest.warns(UserWarning, match=r"^validation: a.png is empty; another picture takes its place$") as said:
        validation.tell([repaired, skipped, skipped])
    validation.tell([skipped])
    assert len(said) == 1
    flat = replace(settings.stage, schedule=ScheduleConfig(max_log_snr=0.001))
    with pytest.raises(ConfigError, match="validation.levels 3: some have the same log-SNR, use fewer"):
        make(replace(settings, stage=flat))


def test_as_many_pictures_as_there_are_can_be_held_out_and_no_more(tmp_path):
    for name in "abc":
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    held = LossPerLevelConfig(data=DataConfig("folder", str(tmp_path), resize="area"), samples=3)
    settings = RunConfig("run", stage=StageConfig(size=8), validation=held)
    assert validation_source(settings).length == 3
    with pytest.raises(ConfigError, match="validation.samples 4 is more than the 3 pictures of validation.data"):
        validation_source(replace(settings, validation=replace(held, samples=4)))
    drawn = [
        validation_source(
            replace(settings, train=StageTrainConfig(seed=run), validation=replace(held, data=DataConfig(), seed=seed))
        )[0].image
        for run, seed in ((0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(drawn[0], drawn[1]), "the run's seed has no say"
    assert not torch.equal(drawn[0], drawn[2])


def test_of_a_stream_as_many_are_held_as_any_measurement_looks_at(tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in "abcde":
            Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
            shard.add(tmp_path / f"{name}.png", f"{name}.png")
    data = DataConfig("shards", str(tmp_path / "shard.tar"), streaming=True, resize="area")
    held = LossPerLevelConfig(every=2, data=data, samples=2, scores=ScoresConfig("clip", every=2, count=4))
    settings = RunConfig("run", stage=StageConfig(size=8), validation=held)
    assert len(validation_source(settings)) == 4
    assert len(validation_source(replace(settings, validation=replace(held, samples=5)))) == 5
    with pytest.raises(ConfigError, match="validation.scores.count 6 is more than the 5 pictures"):
        validation_source(replace(settings, validation=replace(held, scores=replace(held.scores, count=6))))


@pytest.mark.parametrize("section", ["data", "validation.data"])
def test_pictures_that_the_network_cannot_take_are_told_of_either_section(config, tmp_path, section):
    fine = {"data.kind": "folder", "data.path": str(tmp_path), "validation.data": {"kind": "shapes"}}
    with pytest.raises(ConfigError, match=rf"^{section}\.crop 3 is not a multiple of 2, the network's stride"):
        StageTask(config(**{**fine, f"{section}.crop": 3}))
    grey = {"unet.in_channels": 1, "unet.out_channels": 1}
    folder = {"kind": "folder", "path": str(tmp_path)}
    data = {"data": folder, "validation.data": {**folder, "path": "other"}, section: {"kind": "shapes"}}
    with pytest.raises(
        ConfigError, match=rf"^unet\.in_channels 1, but the pictures of {section}\.kind shapes have three"
    ):
        StageTask(config(**{**grey, **data}))
