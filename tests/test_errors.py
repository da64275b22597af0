"""The mistake of a user: one line, with the section in front, and nothing else is taken for one."""

from __future__ import annotations

import io
import sys
import warnings
from dataclasses import dataclass

import pytest

from imagen.errors import ConfigError, Parser, Stopped, config_errors, one_line, require, require_reader, run_command


def test_what_is_wrong_is_one_line_behind_the_section_s_name() -> None:
    with pytest.raises(ConfigError) as caught, config_errors("text.cache: "):
        raise ValueError("no cache there,\n    only files")
    assert str(caught.value) == "text.cache: no cache there, only files"
    assert isinstance(caught.value.__cause__, ValueError)


def test_other_errors_pass_unless_they_are_named() -> None:
    with pytest.raises(OSError, match="^full$"), config_errors("data: "):
        raise OSError("full")
    with pytest.raises(ConfigError, match="^data: full$"), config_errors("data: ", also=OSError):
        raise OSError("full")
    with config_errors("data: "):
        pass


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (ValueError("size 3\n  is odd"), 2, "cmd: error: size 3 is odd"),
        (OSError(28, "No space left"), 1, "cmd: error: [Errno 28] No space left; go on"),
        (MemoryError(), 1, "cmd: error: MemoryError; go on"),
        (Stopped("too much"), 1, "cmd: error: too much; go on"),
        (KeyboardInterrupt(), 130, "cmd: interrupted; go on"),
    ],
)
def test_what_ends_a_command_is_a_line_and_an_exit_code(
    end: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise end

    assert run_command("cmd", work, "; go on") == code
    assert capsys.readouterr().err == f"{told}\n"


def test_a_command_s_own_code_is_kept_and_a_bug_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def bug() -> int:
        raise ValueError("no user did that")

    assert [run_command("cmd", lambda code=code: code) for code in (None, 0, 1)] == [0, 0, 1]
    with pytest.raises(ValueError, match="no user"):
        run_command("cmd", bug, mistakes=ConfigError)
    assert not capsys.readouterr().err


def test_a_command_without_standard_output_does_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind >&-: Python has none then, and print writes nowhere."""
    monkeypatch.setattr(sys, "stdout", None)
    done: list[str] = []
    assert run_command("cmd", lambda: done.append("work") or print("said")) == 0
    assert done == ["work"]


def test_a_warning_is_a_line_of_the_command_s_and_those_for_programmers_stay_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = warnings.formatwarning

    def work(warn: bool = True) -> None:
        warnings.warn("size 3\n is odd", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        if warn:
            raise Stopped("so it ends")

    with warnings.catch_warnings():  # shown, not turned into errors
        warnings.simplefilter("always")
        warnings.showwarning = lambda *of, **_: print(warnings.formatwarning(*of[:4]), end="", file=sys.stderr)
        assert run_command("cmd", work) == 1
        assert run_command("cmd", lambda: work(False)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "odd" in line] == ["cmd: warning: size 3 is odd"] * 2
    assert len([line for line in lines if "test_errors.py" in line and "DeprecationWarning: old" in line]) == 2
    assert warnings.formatwarning is usual


def test_what_standard_output_has_no_letters_for_is_escaped_and_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))

    def work() -> int:
        print("a café in 東京.png")
        print("done")
        return 7

    assert run_command("cmd", work) == 7
    sys.stdout.flush()
    assert written.getvalue().decode("ascii").splitlines() == [r"a caf\xe9 in \u6771\u4eac.png", "done"]


def test_an_error_is_one_line_and_has_at_least_a_name() -> None:
    assert one_line(ValueError("a\n   b\tc ")) == "a b c"
    assert one_line(MemoryError()) == "MemoryError"


def test_what_is_required_holds_or_is_told() -> None:
    require(True, "never")
    with pytest.raises(ConfigError, match="^lr is 0$"):
        require(False, "lr is 0")


@dataclass
class Section:
    kind: str = "a"
    path: str | None = None
    shuffle: int = 3


READERS = {"path": ("b",), "shuffle": ("b", "c")}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"kind": "a"}, None),
        ({"kind": "a", "shuffle": 3}, None),
        ({"kind": "b", "path": "x", "shuffle": 4}, None),
        ({"kind": "c", "shuffle": 4}, None),
        (
            {"kind": "a", "shuffle": 4},
            "data.shuffle 4 is of kind b or c, and data.kind is a: leave it out or change the kind",
        ),
        (
            {"kind": "c", "path": "x", "shuffle": 4},
            "data.path 'x' is of kind b, and data.kind is c: leave it out or change the kind",
        ),
    ],
)
def test_an_option_of_another_kind_is_refused(given: dict[str, object], told: str | None) -> None:
    config = Section(**given)  # type: ignore[arg-type]
    if told is None:
        return require_reader("data", config, config.kind, READERS)
    with pytest.raises(ConfigError, match=f"^{told}$"):
        require_reader("data", config, config.kind, READERS)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--stpes", "3"], "cmd: error: unrecognized arguments: --stpes 3; did you mean --steps?"),
        (["--steps", "3", "--zzz"], "cmd: error: unrecognized arguments: --zzz"),
        (["--zzz", "--stpes"], "cmd: error: unrecognized arguments: --zzz --stpes"),  # of the first, or of none
        (["--steps"], "cmd: error: argument --steps: expected one argument"),
        (["--steps", "x"], "cmd: error: argument --steps: invalid int value: 'x'"),
    ],
)
def test_a_parser_says_what_was_perhaps_meant(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="cmd")
    parser.add_argument("--steps", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{told}\n"


def test_what_a_section_says_is_one_line_each_trimmed() -> None:
    with pytest.raises(ConfigError) as caught, config_errors("data: ", also=KeyError):
        raise ValueError(" a\n  b  \nc")
    assert str(caught.value) == "data: a b c"
