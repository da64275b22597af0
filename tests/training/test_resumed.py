"""A run that goes on: what of its configuration may change, key by key, and how its pictures are reduced."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagen.data.config import DataConfig
from imagen.errors import ConfigError
from imagen.training.config.resumed import Changes, changed_keys, flatten, migrate, read_stored, with_rules
from imagen.training.config.sections import RunSettings, ValidationConfig

FREE = {  # of any run: where it is, how fast, what it tells and keeps, when it gives up
    *("run_dir", "data.max_skipped_share", "grid.every"),
    *(f"validation.{name}" for name in ("every", "data", "samples", "batch_size", "seed")),
    *(
        f"train.{name}"
        for name in (
            *("num_workers", "checkpoint_every", "keep_last", "log_every", "time_limit", "max_skipped"),
            *("max_skipped_in_a_row", "trackers", "compile", "channels_last", "accumulation"),
        )
    ),
}
WARNED = {  # what it learns goes on, otherwise
    *("train.steps", "train.mixed_precision", "data.path", "ema.decay", "ema.warmup"),
    *(f"optim.{name}" for name in ("lr", "betas", "eps", "weight_decay", "warmup", "schedule", "hold", "clip_norm")),
}


def tree(**changes: Any) -> dict[str, Any]:
    """A stored configuration with dotted keys changed."""
    found = asdict(RunSettings("run"))
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        node = found
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return found


def test_every_key_may_change_or_warns_or_is_refused() -> None:
    config = RunSettings("run")
    flat = flatten(asdict(config))
    assert flat.keys() > FREE | WARNED
    for key, value in flat.items():
        warned, refused = changed_keys(tree(**{key: {"a": 1} if value == {} else "another"}), config)
        kind = "free" if key in FREE else "warned" if key in WARNED else "refused"
        assert [bool(warned), bool(refused)] == [kind == "warned", kind == "refused"], f"{key} is not {kind}"
        assert all(told.startswith(key) for told in warned + refused)


@pytest.mark.parametrize("key", ["optim.muon_lr", "optim.momentum"])
def test_a_number_may_change_but_not_whether_there_is_one(key: str) -> None:
    kind = "adamw" if key == "optim.muon_lr" else "adafactor"
    section = replace(RunSettings("run").optim, kind=kind, **{key.removeprefix("optim."): 0.25})
    config = RunSettings("run", optim=section)
    before = tree(**{"optim.kind": kind, key: 0.5})
    assert changed_keys(before, config) == ([f"{key} 0.5 -> 0.25"], [])
    assert changed_keys(tree(**{"optim.kind": kind}), config) == ([], [f"{key} None -> 0.25"])
    without = RunSettings("run", optim=replace(section, **{key.removeprefix("optim."): None}))
    assert changed_keys(before, without) == ([], [f"{key} 0.5 -> None"])


def test_a_task_names_further_keys_and_sections_in_words_that_end_at_a_point() -> None:
    config = RunSettings("run")
    saved = tree(**{"data.split": "heldout", "data.shuffle": 3, "train.seed": 2})
    told = ["data.shuffle 3 -> 1000", "data.split heldout -> train", "train.seed 2 -> 0"]
    assert changed_keys(saved, config) == ([], told)
    assert changed_keys(saved, config, Changes(("data",), ("train.seed",))) == (told[2:], [])
    assert changed_keys(saved, config, Changes(("data.split",), ("data.shuffle",))) == (told[:1], told[2:])
    assert changed_keys(saved, config, Changes(("dat", "data.s"), ("train.see",))) == ([], told)


def test_what_an_older_version_did_not_store_was_as_it_is_by_default() -> None:
    saved = tree()
    del saved["train"]["seed"], saved["ema"], saved["data"]["lanes"]
    assert changed_keys(saved, RunSettings("run")) == ([], [])
    assert changed_keys({**saved, "gone": {"key": 1}}, RunSettings("run")) == ([], ["gone.key 1 -> None"])
    old = replace(RunSettings("run"), train=replace(RunSettings("run").train, seed=3))
    assert changed_keys(saved, old) == ([], ["train.seed 0 -> 3"])


# --- the rules by which stored pictures are read ---------------------------------------------------------------------

OLD, NEW = {"resize": "bicubic", "rules": 1}, {"resize": "area", "rules": 2}
FOLDER = DataConfig("folder", "pictures")


@pytest.mark.parametrize(("data", "added"), [
    (None, {}), ({"path": "x"}, {}), ({"kind": "shapes"}, {}), ({"kind": "folder", **NEW}, {}),
    ({"kind": "folder", "resize": None, "rules": None}, {}), ({"kind": "hub", "path": "x"}, OLD),
    ({"kind": "folder", "resize": "area"}, {"rules": 1}), ({"kind": "folder", "rules": 2}, {"resize": "bicubic"}),
], ids=str)  # fmt: skip
def test_a_run_of_stored_pictures_from_before_a_rule_is_migrated_and_told(data: Any, added: dict[str, Any]) -> None:
    saved = {"data": data, "train": {"seed": 3}}
    tree, notes = migrate(saved)
    assert tree == {**saved, "data": {**data, **added}} if added else tree == saved
    assert len(notes) == len(added)
    assert all(f"with data.{key} {value};" in note for (key, value), note in zip(added.items(), notes, strict=True))
    assert migrate({}) == ({}, [])


@pytest.mark.parametrize("key", NEW)
@pytest.mark.parametrize(("asked", "stored", "rule"), [
    (None, None, NEW), (None, {}, NEW), (None, {"data": None}, NEW), (None, {"data": dict.fromkeys(NEW)}, NEW),
    (None, {"data": OLD}, OLD), (NEW, {"data": OLD}, NEW), (OLD, None, OLD),
])  # fmt: skip
def test_what_is_asked_for_goes_before_what_the_run_began_with(key: str, asked: Any, stored: Any, rule: Any) -> None:
    wanted = replace(FOLDER, **{key: None if asked is None else asked[key]})
    assert getattr(with_rules(RunSettings("run", data=wanted), stored).data, key) == rule[key]


@pytest.mark.parametrize("asked", [{}, NEW, {"rules": 2}])
def test_held_out_pictures_follow_those_trained_on_unless_they_are_told_otherwise(asked: dict[str, Any]) -> None:
    data, held = replace(FOLDER, **OLD), ValidationConfig(data=replace(FOLDER, path="o", **asked))
    found = with_rules(RunSettings("run", data=data, validation=held), None)
    assert found.data == data
    assert found.validation.data == replace(FOLDER, path="o", **{**OLD, **asked})


def test_drawn_pictures_have_no_rule_beside_stored_ones() -> None:
    drawn = RunSettings("run", validation=ValidationConfig(data=FOLDER))
    found = with_rules(drawn, None)
    assert (found.data, found.validation.data) == (DataConfig(), replace(FOLDER, **NEW))
    held = RunSettings("run", data=FOLDER, validation=ValidationConfig(data=DataConfig()))
    assert with_rules(held, None).validation == held.validation


def test_a_run_is_gone_on_with_where_there_are_a_resume_point_and_a_configuration(tmp_path: Path) -> None:
    def migration(saved: Any) -> tuple[dict[str, Any], list[str]]:
        return {"seen": saved}, ["a note"]

    assert read_stored(tmp_path, migration) is None
    (tmp_path / "state" / "step-00000002").mkdir(parents=True)
    for content, told in (
        (
            None,
            "has resume points, but no config.yaml that says what they are of: put it back as it was, or give anoth",
        ),
        (b"a: [", "config.yaml' is not valid YAML .*: put it back"),
        (b"\xff", "config.yaml' is not valid YAML .*: put it back"),
        (b"", "config.yaml' is no configuration: put it back"),
        (b"- a", "config.yaml' is no configuration: put it back"),
    ):
        if content is not None:
            (tmp_path / "config.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=told) as caught:
            read_stored(tmp_path, migration)
        assert "\n" not in str(caught.value)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"run_dir": "größer"}, allow_unicode=True), encoding="utf-8")
    assert read_stored(tmp_path, migration) == ({"seen": {"run_dir": "größer"}}, ["a note"])
    (tmp_path / "state" / "step-00000002").rmdir()
    assert read_stored(tmp_path, migration) is None


def test_sections_are_flattened_to_dotted_keys() -> None:
    found = flatten({"a": {"b": (1, 2), "c": {"d": None}}, "e": {}, "f": [3]})
    assert found == {"a.b": [1, 2], "a.c.d": None, "e": {}, "f": [3]}


@pytest.mark.parametrize(("trained_on", "asked", "least"), [(9, None, 9), (9, 5, 5), (None, 5, 5), (None, None, None)])
def test_held_out_pictures_may_be_as_small_as_those_trained_on(
    trained_on: int | None, asked: int | None, least: int | None
) -> None:
    held = ValidationConfig(data=replace(FOLDER, min_size=asked))
    found = with_rules(RunSettings("run", data=replace(FOLDER, min_size=trained_on), validation=held), None)
    assert found.data.min_size == trained_on
    assert found.validation.data is not None
    assert found.validation.data.min_size == least
