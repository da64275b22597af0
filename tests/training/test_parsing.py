"""Reading a configuration: every mistake names what was perhaps meant and where it stands, and the rest arrives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagen.data.config import DataConfig
from imagen.errors import ConfigError
from imagen.training.config.parsing import known_keys, parse, to_yaml, told_of, unknown_key
from imagen.training.config.sections import OptimConfig, RunSettings, TrainConfig, ValidationConfig
from imagen.training.config.values import is_free

COMMAND = ("fit.py", "Fit a line.")


@dataclass(frozen=True)
class Settings(RunSettings):
    """A run with keys of a user's own."""

    free: dict[str, Any] = field(default_factory=dict)
    """anything"""


def read(*words: str) -> Settings:
    return parse(Settings, words, *COMMAND)


@pytest.mark.parametrize(("key", "hint"), [
    ("train.step", "did you mean 'train.steps'?"),
    ("stpes", "did you mean 'train.steps'?"),  # of a section that was left out: the last word alone is near
    ("optim.stpes", "did you mean 'train.steps'?"),  # or of another one
    ("xyz", "known keys: ema.decay, train.seed, train.steps"),  # in order
])  # fmt: skip
def test_an_unknown_key_names_the_nearest_or_else_all(key: str, hint: str) -> None:
    told = str(unknown_key(key, {"train.steps", "train.seed", "ema.decay"}, "x.yaml"))
    assert told == f"unknown key '{key}' in x.yaml; {hint}"


@pytest.mark.parametrize(("key", "beside"), [
    ("train.quokka", "train.seed, train.steps"),
    ("xyz", "run_dir, train"),  # of no section: the sections
    ("xyz.abc", "run_dir, train"),
])  # fmt: skip
def test_where_none_is_near_those_of_its_section_are_named(key: str, beside: str) -> None:
    told = str(unknown_key(key, {"train", "train.steps", "train.seed", "run_dir"}, "x.yaml"))
    assert told == f"unknown key '{key}' in x.yaml; known keys: {beside}"


def test_the_keys_are_those_of_sections_in_sections_too_and_some_take_any() -> None:
    keys = known_keys(Settings)
    assert {"run_dir", "optim", "optim.lr", "validation.data", "validation.data.crop", "data.fields"} <= keys.keys()
    assert {key for key, hint in keys.items() if is_free(hint)} == {"free", "data.fields", "validation.data.fields"}
    assert keys.keys() & {"lr", "data.fields.label", "optim.crop", "crop"} == set()


def test_keys_below_a_free_one_are_the_user_s_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("run_dir: a\nfree: {deep: {er: 1}}\n")
    assert read("--config", str(path), "--free.other", "2").free == {"deep": {"er": 1}, "other": 2}
    path.write_text("run_dir: a\ntrain: {steps: {er: 1}}\n")
    with pytest.raises(ConfigError, match="unknown key 'train.steps.er' in .*c.yaml"):
        read("--config", str(path))


@pytest.mark.parametrize("words", [["--train.step", "3"], ["--train.step=3"], ["--train.steps.er", "3"]], ids=str)
def test_an_unknown_option_is_told_whatever_follows_it(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="unknown key 'train.step.*' in the command line; did you mean 'train.steps'"):
        read("--run_dir", "a", *words)


@pytest.mark.parametrize("joined", [False, True])
def test_every_file_is_looked_through_and_the_last_word_counts(tmp_path: Path, joined: bool) -> None:
    files = [tmp_path / name for name in ("a.yaml", "b.yaml")]
    given = [word for file in files for word in ([f"--config={file}"] if joined else ["--config", str(file)])]
    files[0].write_text("run_dir: a\ntrain: {steps: 5, seed: 6}\n")
    files[1].write_text("train: {steps: 7}\n")
    found = read("--train.keep_last", "9", *given, "--train.seed", "8").train
    assert found == TrainConfig(steps=7, seed=8, keep_last=9)
    files[1].write_text("train: {stpes: 7}\n")
    with pytest.raises(ConfigError, match="unknown key 'train.stpes' in .*b.yaml"):
        read(*given)


@pytest.mark.parametrize(("content", "told"), [
    (b"a: [1", "c.yaml is not valid YAML: "),
    (b"\xff\xfe\xfa", "c.yaml is not valid YAML: "),
    (b"- a\n- b\n", "c.yaml holds list, expected a mapping of sections"),
    (b"", "c.yaml holds NoneType, expected a mapping of sections"),
    (b"train: {steps: 1}\ntrain: {seed: 2}\n", "c.yaml is not valid YAML: 'train' is there twice .*line 2, column 1"),
    (b"train: {steps: 1, seed: 2, steps: 3}\n", "c.yaml is not valid YAML: 'steps' is there twice .*line 1, column 28"),
    (b"a: &a [*a]\n", "unknown key 'a' in "),
    (b"[" * 9999, "c.yaml is nested too deep to be a configuration"),
], ids=["syntax", "bytes", "list", "empty", "twice", "twice below", "itself", "deep"])  # fmt: skip
def test_a_file_that_is_no_configuration_is_told_in_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=told) as caught:
        read("--config", str(tmp_path / "c.yaml"))
    assert "\n" not in str(caught.value)
    for words, reason in ((["--config", str(tmp_path)], "Is a directory"), (["--config"], "cannot read --config ''")):
        with pytest.raises(ConfigError, match=reason):
            read(*words)


@pytest.mark.parametrize(("words", "told"), [
    ([], "^run_dir is missing: add it to the YAML file or pass --run_dir DIR$"),
    (["--run_dir", "a", "--train.steps", "few"], "wrong value for .*train.steps.*few"),
    (["--run_dir", "a", "--optim.kind", "sgd"], "wrong value for .*optim.kind.*sgd"),
    (["--run_dir", "a", "--optim.lr", "-1"], "^optim.lr -1.0 must be zero or a positive number$"),
], ids=str)  # fmt: skip
def test_a_wrong_value_is_told_in_one_line_and_a_section_s_own_words_as_they_are(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        read(*words)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_is_told_leaves_out_what_only_a_parser_s_author_reads() -> None:
    lines = ["Parser key", "  Subtypes: (a, b)", "", "Errors:", "  - odd", "Given value type: str", "Given value: x"]
    assert told_of(ValueError("\n".join(lines)), {}) == "Parser key - odd Given value: x"
    lines[0] = 'Parser key "a.b":'
    assert told_of(ValueError("\n".join(lines)), {"a.b": int}) == "wrong value for 'a.b': x; expected a whole number"
    assert told_of(ValueError('Key "other" are required'), {}) == 'Key "other" are required'


def test_without_arguments_the_command_line_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fit.py", "--run_dir", "from-there"])
    assert parse(Settings, None, *COMMAND).run_dir == "from-there"
    with pytest.raises(ConfigError, match="run_dir is missing"):
        parse(Settings, [], *COMMAND)  # none are none


def test_help_names_the_command_says_what_it_does_and_takes_words_for_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Settings, ["--help"], *COMMAND, helps={"run_dir": "a word of its own"})
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("usage: fit.py ")
    assert "Fit a line." in said
    assert "--run_dir RUN_DIR a word of its own" in said
    assert "folder of the run" not in said


def test_what_is_written_is_read_back_and_in_the_order_and_letters_of_the_user() -> None:
    config = Settings(
        "läuft",
        data=DataConfig("folder", "bilder", fields={"b": "cls", "a": "png"}),
        optim=OptimConfig(betas=(0.5, 0.75)),
        validation=ValidationConfig(every=2, data=DataConfig()),
        free={"z": (1, 2), "a": None},
    )
    text = to_yaml(config)
    tree = yaml.safe_load(text)
    assert list(tree) == ["run_dir", "data", "optim", "ema", "train", "validation", "grid", "free"]
    assert "läuft" in text
    assert (tree["optim"]["betas"], tree["free"], list(tree["data"]["fields"])) == (
        [0.5, 0.75], {"z": [1, 2], "a": None}, ["b", "a"],
    )  # fmt: skip
