"""The loader of a process's share of each batch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tarfile
import time

import pytest
import torch
import yaml

from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.config.run import RunConfig, StageTrainConfig
from imagen.cascade.training.inputs.source import make_source
from imagen.data.config import DataConfig
from imagen.errors import ConfigError
from imagen.training.config.parsing import to_yaml
from imagen.training.loader import make_loader, outlive_one_signal


def test_workers_change_nothing_and_resuming_takes_up_the_order(config):
    changes = {"train.batch_size": 4, "train.accumulation": 2, "train.steps": 3}
    batches = {}
    for workers in (0, 2):
        settings = config(**changes, **{"train.num_workers": workers})
        batches[workers] = list(make_loader(settings, make_source(settings), 0, 0, 1))
    later = list(make_loader(settings, make_source(settings), 2, 0, 1))
    assert [len(batch["key"]) for batch in batches[0]] == [2] * 6
    for one, other in [*zip(batches[0], batches[2], strict=True), *zip(batches[0][4:], later, strict=True)]:
        assert one["key"] == other["key"]
        assert torch.equal(one["image"], other["image"])


def test_what_a_task_has_done_to_a_batch_is_done_where_it_is_loaded(config, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)

    def ready(raw):
        return {**raw, "process": os.getpid(), "alone": os.environ.get("TOKENIZERS_PARALLELISM")}

    for workers in (0, 2):
        settings = config(**{"train.num_workers": workers, "train.steps": 4})
        batches = list(make_loader(settings, make_source(settings), 0, 0, 1, ready))
        processes = {batch["process"] for batch in batches}
        assert (len(processes), os.getpid() in processes) == ((2, False) if workers else (1, True))
        assert {batch["alone"] for batch in batches} == ({"false"} if workers else {None})
        assert all(len(batch["key"]) == settings.train.batch_size for batch in batches)


def test_what_a_task_has_done_is_done_to_a_stream_s_batches(stream):
    loader = make_loader(*stream(4), 0, 0, 2, lambda raw: {**raw, "seen": True})
    assert loader.collate_fn({"key": ["a", "b"]}) == {"key": ["a", "b"], "seen": True}


def test_processes_share_a_batch_without_overlap(config):
    settings = config(**{"train.batch_size": 8, "train.accumulation": 2, "train.steps": 1})
    source = make_source(settings)
    shares = [[batch["key"] for batch in make_loader(settings, source, 0, rank, 2)] for rank in (0, 1)]
    whole = config(**{"train.batch_size": 8, "train.steps": 1})
    (expected,) = [batch["key"] for batch in make_loader(whole, source, 0, 0, 1)]
    assert [key for micro in zip(*shares, strict=True) for part in micro for key in part] == expected


def worker(ready) -> None:
    outlive_one_signal(0)
    ready.set()
    while True:
        time.sleep(0.01)


def test_a_worker_outlives_one_sigterm_and_not_the_second():
    """The first may be meant for the whole job; Python ends what is left of the workers at its exit with more."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=worker, args=(ready,), daemon=True)
    process.start()
    ready.wait()
    process.terminate()
    process.join(0.5)
    assert process.is_alive()
    process.terminate()
    process.join(30)
    assert process.exitcode == -signal.SIGTERM


def test_sizes_that_the_source_cannot_make_are_told(config):
    with pytest.raises(ConfigError, match="data: lowres_size is 5; expected a divisor"):
        make_source(config(**{"stage.name": "sr256", "stage.size": 8, "stage.lowres_size": 5}))


def test_fields_are_named_in_a_file_or_on_the_command_line_and_read_or_told(config, write_config):
    path = str(write_config(**{"data.fields": {"label": "shape"}}))
    settings = parse(["--config", path, "--data.fields.tone", "color"])
    assert settings.data.fields == {"label": "shape", "tone": "color"}
    assert DataConfig(**yaml.safe_load(to_yaml(settings))["data"]) == settings.data
    with pytest.raises(ConfigError, match="data: data.fields 'label' is read by nothing here, which reads none"):
        make_source(settings)


def test_a_loader_s_worker_gives_all_its_batches_after_a_signal_to_the_whole_job(config):
    settings = config(**{"train.steps": 12, "train.num_workers": 1})
    before = {process.pid for process in multiprocessing.active_children()}
    loader = iter(make_loader(settings, make_source(settings), 0, 0, 1))
    keys = next(loader)["key"]
    (worker,) = [process for process in multiprocessing.active_children() if process.pid not in before]
    os.kill(worker.pid, signal.SIGTERM)
    keys += [key for batch in loader for key in batch["key"]]
    assert len(keys) == len(set(keys)) == 12 * settings.train.batch_size


@pytest.fixture
def stream(tmp_path):
    """stream(lanes) -> a run's configuration and its stream; nothing is read of it."""

    def make(lanes: int, **train):
        with tarfile.open(tmp_path / "a.tar", "w"):
            pass
        data = DataConfig("shards", str(tmp_path / "a.tar"), streaming=True, lanes=lanes, shuffle=3)
        how = StageTrainConfig(**{"batch_size": 8, "accumulation": 2, "steps": 9, **train})
        settings = RunConfig(str(tmp_path / "run"), data=data, train=how)
        return settings, make_source(settings)

    return make


@pytest.mark.parametrize(("workers", "processes", "threads"), [(0, 0, 1), (1, 1, 1), (3, 1, 3)])
def test_a_stream_is_read_by_one_worker_on_as_many_threads_as_there_would_be_workers(
    stream, workers, processes, threads
):
    settings, source = stream(4, num_workers=workers)
    loader = make_loader(settings, source, 5, 1, 2)
    batches = loader.dataset
    assert (loader.num_workers, batches.threads, loader.batch_size) == (processes, threads, None)
    assert (batches.source, batches.start_step, batches.num_steps, batches.accumulation) == (source, 5, 9, 2)
    assert (batches.mine, batches.each) == (range(2, 4), 1)
    assert str(batches.lengths) == f"{settings.run_dir}/shards.jsonl"


@pytest.mark.parametrize(
    ("lanes", "told"), [(3, "3 lanes cannot be shared out over 2"), (8, "batch of 8 cannot be cut")]
)
def test_lanes_that_do_not_divide_the_work_are_told(stream, lanes, told):
    with pytest.raises(ConfigError, match=f"^data: .*{told}"):
        make_loader(*stream(lanes), 0, 0, 2)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_stored_pictures_are_loaded_by_workers_that_outlive_a_signal_and_end_with_the_run(workers):
    settings = RunConfig("run", train=StageTrainConfig(num_workers=workers, batch_size=6))
    loader = make_loader(settings, make_source(settings), 0, 0, 1)
    assert loader.num_workers == workers
    assert loader.worker_init_fn is outlive_one_signal
    context = loader.multiprocessing_context
    assert (None if context is None else context.get_start_method()) == ("fork" if workers else None)
    with pytest.raises(ConfigError, match="^data: .*batch of 6 cannot be divided"):
        list(make_loader(settings, make_source(settings), 0, 0, 4))
