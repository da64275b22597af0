"""Resume points: whole or not there, the newest intact one is used, old ones go."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from dataclasses import asdict, replace

import pytest
import torch

from imagen.disk import MetricsFile
from imagen.errors import ConfigError
from imagen.training.state.checkpoint import State, StateFolder, checksum
from imagen.training.telling import Window


def state(step: int) -> State:
    tensors = {"unet": {"w": torch.full((3,), float(step))}, "ema": {"w": torch.full((3,), -float(step))}}
    return State(step, tensors, {"state": {0: {"exp_avg": torch.ones(2) * step}}}, {"skipped": step, "x": 0.1})


def test_round_trip(tmp_path):
    folder = StateFolder(tmp_path / "state")
    assert folder.newest() is None
    folder.save(state(5))
    found = folder.newest()
    assert (found.step, found.facts) == (5, {"skipped": 5, "x": 0.1})
    assert torch.equal(found.tensors["ema"]["w"], torch.full((3,), -5.0))
    assert torch.equal(found.optimizer["state"][0]["exp_avg"], torch.full((2,), 5.0))


def test_only_the_newest_are_kept(tmp_path):
    folder = StateFolder(tmp_path, keep_last=2)
    for step in (1, 2, 30):
        folder.save(state(step))
    assert folder.steps() == [2, 30]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000030"]


def test_steps_are_numbers_in_order_and_nothing_else_is_one(tmp_path):
    folder = StateFolder(tmp_path / "state", keep_last=9)
    assert folder.steps() == []
    for step in (20, 3, 100_000_000):
        folder.save(state(step))
    for name in ("step-x", "step-", "damaged-00000004", "other-00000005"):
        (folder.root / name).mkdir(exist_ok=True)
    assert folder.steps() == [3, 20, 100_000_000]
    assert folder.path(3).name == "step-00000003"


def test_a_file_is_known_by_its_size_and_its_crc(tmp_path):
    path = tmp_path / "file"
    content = bytes(range(256)) * 20_000  # more than is read at once
    path.write_bytes(content)
    assert checksum(path) == [len(content), zlib.crc32(content)]


def test_a_step_that_is_saved_again_replaces_what_was_there_and_what_a_killed_writer_left(tmp_path):
    folder = StateFolder(tmp_path)
    folder.save(state(5))
    (folder.path(5) / "old").write_text("stale")
    (tmp_path / "partial-00000005").mkdir()
    (tmp_path / "partial-00000005" / "old").write_text("stale")
    path = folder.save(replace(state(5), facts={"again": True}))
    assert path == folder.path(5)
    assert folder.newest().facts == {"again": True}
    assert not list(tmp_path.rglob("old"))
    record = json.loads((path / "state.json").read_text())
    assert (record["format_version"], record["step"]) == (1, 5)
    written = {file.name for file in path.iterdir()} - {"state.json"}
    assert written == {"unet.safetensors", "ema.safetensors", "optimizer.pt"} == record["files"].keys()


def test_tensors_of_any_layout_are_kept_by_their_values(tmp_path):
    turned = torch.arange(6.0).reshape(2, 3).T
    StateFolder(tmp_path).save(State(1, {"unet": {"w": turned}}, {}, {}))
    assert torch.equal(StateFolder(tmp_path).newest().tensors["unet"]["w"], turned)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip_a_byte(path / "unet.safetensors"),
        lambda path: flip_a_byte(path / "optimizer.pt"),
        lambda path: (path / "ema.safetensors").write_bytes((path / "ema.safetensors").read_bytes()[:-1]),
        lambda path: (path / "optimizer.pt").unlink(),
        lambda path: (path / "state.json").write_text('{"format_version": 1, "st'),
        lambda path: (path / "state.json").unlink(),
        lambda path: (path / "state.json").write_text('{"format_version": 1}'),
        lambda path: (path / "state.json").write_text("[1]"),
    ],
    ids=["weights bit", "optimizer bit", "truncated", "file missing", "json cut", "json missing", "no files", "list"],
)
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path, damage):
    folder = StateFolder(tmp_path, keep_last=2)
    folder.save(state(10))
    damage(folder.save(state(20)))
    with pytest.warns(UserWarning, match="step-00000020 is damaged .* using the one before"):
        assert folder.newest().step == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-00000020", "step-00000010"]
    folder.keep_last = 1
    folder.save(state(15))  # a damaged one that counted as the newest would have it removed at once
    assert folder.newest().step == 15
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000015"]


def test_what_a_killed_writer_left_is_not_a_resume_point(tmp_path):
    folder = StateFolder(tmp_path)
    folder.save(state(1))
    (tmp_path / "step-00000001").rename(tmp_path / "partial-00000002")
    assert folder.newest() is None
    folder.save(state(3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_whatever_was_left_is_gone_behind_the_next_resume_point(tmp_path):
    folder = StateFolder(tmp_path)
    for name in ("damaged-00000001", "damaged-00000002", "partial-00000003", "partial-00000004"):
        (tmp_path / name).mkdir()
    folder.save(state(5))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


class Code:
    """What a pickle may hold: a call that reading it would make."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_no_code_in_a_resume_point_is_run(tmp_path):
    folder = StateFolder(tmp_path / "state")
    folder.save(State(1, {}, {"state": Code(tmp_path / "made")}, {}))
    with pytest.raises(pickle.UnpicklingError):
        folder.newest()
    assert not (tmp_path / "made").exists()


def test_a_resume_point_of_a_newer_program_is_not_read(tmp_path):
    folder = StateFolder(tmp_path)
    path = folder.save(state(1)) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(ConfigError, match="format version 99, newer than 1: update imagen"):
        folder.newest()
    assert folder.steps() == [1]


def test_nothing_is_lost_where_no_resume_point_can_be_read(tmp_path, monkeypatch):
    folder = StateFolder(tmp_path)
    for step in (10, 20):
        flip_a_byte(folder.save(state(step)) / "ema.safetensors")
    for _ in range(2):  # the second start must not find an empty folder and begin anew
        with pytest.raises(
            ConfigError, match=r"every resume point .* \(step 20: ema.safetensors is not what was written"
        ):
            folder.newest()
    assert folder.steps() == [10, 20]
    flip_a_byte(folder.path(10) / "ema.safetensors")
    with pytest.warns(UserWarning, match="step-00000020 is damaged"):
        assert folder.newest().step == 10

    def no_handles_left(path):
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr("imagen.training.state.checkpoint.checksum", no_handles_left)
    with pytest.raises(ConfigError, match=r"cannot be read \(.*Too many open files"):
        folder.newest()
    assert folder.steps() == [10]


def test_metrics_are_cut_back_to_the_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6)) + '{"step": 8')
    metrics = MetricsFile(path, 4)
    metrics.write({"step": 5})
    assert path.read_text().endswith('\n{"step": 5}\n')  # readers see a line as soon as it is written
    metrics.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 5]
    MetricsFile(path, 4).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4]
    MetricsFile(path, 0).close()
    assert path.read_text() == ""


def test_window_gives_means_per_quarter_and_survives_json():
    groups = ("t0", "t1", "t2", "t3")
    window = Window.of(groups)
    window.add([1.0, 0.0, 6.0, 0.0], [2.0, 0.0, 2.0, 0.0], 3.0)
    window = Window(**json.loads(json.dumps(asdict(window))))
    window.add([1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], 1.0)
    assert window.means(groups) == {
        "loss": 8 / 5, "loss_t0": 2 / 3, "loss_t1": None, "loss_t2": 3.0, "loss_t3": None, "grad_norm": 2.0,
    }  # fmt: skip
    assert Window.of(groups).means(groups)["loss"] is None
    assert Window.of(()).means(()) == {"loss": None, "grad_norm": None}
