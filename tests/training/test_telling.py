"""The progress line, on a terminal and off it; means between two lines; the pictures that could not be used."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from imagen.data.sources import Note
from imagen.training import telling
from imagen.training.telling import Progress, SkipFile, Window, duration


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which the test sets."""
    now = [0.0]
    monkeypatch.setattr(telling.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("start", "step", "seconds", "left"), [
    (0, 10, 20, "0:03:00"),
    (90, 95, 10, "0:00:10"),  # two seconds a step, whatever an earlier start has done
    (0, 1, 7200, "198:00:00"),
    (40, 40, 30, "0:30:00"),  # a step that was all skipped: as if it were one
])  # fmt: skip
def test_the_time_left_is_told_from_the_speed_of_this_start(
    clock: list[float], start: int, step: int, seconds: float, left: str
) -> None:
    progress = Progress(100, start, stream := io.StringIO())
    clock[0] = seconds
    progress.show(step, 0.5, 12.34, 0)
    assert stream.getvalue() == f"step {step}/100  loss 0.50000  12.3 img/s  ETA {left}\n"


def test_what_went_wrong_is_told_where_anything_did(clock: list[float]) -> None:
    Progress(4, 0, stream := io.StringIO()).show(4, None, 1.0, skipped=2, pictures=3)
    assert stream.getvalue() == "step 4/4  loss -  1.0 img/s  ETA 0:00:00  2 skipped  3 unusable pictures\n"


def test_off_a_terminal_a_line_comes_once_in_a_while_and_at_the_end(clock: list[float]) -> None:
    progress = Progress(6, 0, stream := io.StringIO(), every=30)
    for step, clock[0] in enumerate((1, 30, 31, 60, 61, 62), start=1):
        progress.show(step, 1.0, 1.0, 0)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/6", "3/6", "5/6", "6/6"]


def test_on_a_terminal_every_line_takes_the_place_of_the_last(clock: list[float]) -> None:
    progress = Progress(6, 0, stream := Terminal())
    for step in (1, 2):
        progress.show(step, 1.0, 1.0, 0)
    progress.note("a word")
    assert [part.split("  ")[0] for part in stream.getvalue().split("\r\x1b[2K")] == [
        "",
        "step 1/6",
        "step 2/6",
        "a word\n",
    ]


def test_by_default_a_line_comes_twice_a_minute_on_standard_error(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(9, 0)
    for step, clock[0] in ((1, 0), (2, 29.9), (3, 30)):
        progress.show(step, 1.0, 1.0, 0)
    progress.note("a word")
    told = capsys.readouterr()
    assert [line.split()[1] for line in told.err.splitlines()] == ["1/9", "3/9", "word"]
    assert told.out == ""


def test_seconds_are_told_as_hours_minutes_and_seconds() -> None:
    assert [duration(s) for s in (0, 0.4, 59.6, 61, 3599, 3600, 36_061)] == [
        "0:00:00", "0:00:00", "0:01:00", "0:01:01", "0:59:59", "1:00:00", "10:01:01",
    ]  # fmt: skip


def test_a_window_without_groups_has_one_mean_of_all() -> None:
    window = Window.of(())
    window.add([6.0], [4.0], 1.0)
    window.add([2.0], [4.0], 2.0)
    assert window.means(()) == {"loss": 1.0, "grad_norm": 1.5}


# --- skipped pictures ------------------------------------------------------------------------------------------------


def skipped(*keys: str, reason: str = "broken") -> list[Note]:
    return [Note(key, "skipped", reason) for key in keys]


@pytest.mark.parametrize(("length", "share", "most"), [(10, 0.2, 2), (10, 0.0, 0), (3, 1.0, 3), (10, 0.25, 2)])
def test_a_share_of_the_items_may_be_unusable_and_one_more_may_not(
    tmp_path: Path, length: int, share: float, most: int
) -> None:
    file = SkipFile(tmp_path / "run" / "s.jsonl", length, share)
    for _ in range(2):  # the same item is one
        for number in range(most):
            file.add(skipped(str(number)))
    assert not file.exceeded
    file.add([Note("r", "repaired", "turned")])
    assert not file.exceeded, "and a repaired one is none"
    file.add(skipped("last"))
    assert file.exceeded


def test_where_nobody_knows_how_many_there_are_the_share_is_of_those_read_or_a_thousand(tmp_path: Path) -> None:
    file = SkipFile(tmp_path / "s.jsonl", None, 0.002)
    file.add(skipped("a", "b"))
    assert not file.exceeded
    file.add(skipped("c"))
    for file.read, exceeded in ((0, True), (1499, True), (1500, False)):
        assert file.exceeded == exceeded
    assert " 3 of 1500 pictures" in f" {file.verdict()}"


def test_the_verdict_says_how_many_the_limit_the_first_and_where(tmp_path: Path) -> None:
    file = SkipFile(tmp_path / "s.jsonl", 40, 0.05)
    file.add([Note("r", "repaired", "turned"), *skipped("b", reason="empty"), *skipped("a", "b")])
    assert file.verdict() == (
        "2 of 40 pictures cannot be used, more than data.max_skipped_share 0.05 allows; the first is b: empty. "
        f"{tmp_path / 's.jsonl'} lists them: mend or remove them, or allow a larger share"
    )


def test_where_none_can_be_used_a_larger_share_is_no_remedy(tmp_path: Path) -> None:
    file = SkipFile(tmp_path / "s.jsonl", 2, 0.5)
    file.add(skipped("a", "b"))
    assert file.verdict().endswith("s.jsonl lists them: mend or remove them")


def test_a_note_is_written_once_for_each_reason_whoever_met_it_and_kept_in_letters(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    one, other = SkipFile(path, 9, 0.5), SkipFile(path, 9, 0.5)
    one.add(skipped("ä", "ä"))
    assert other.refresh() == 1
    other.add([*skipped("ä"), *skipped("ä", reason="gone"), Note("\udcff", "repaired", "named")])
    assert (one.refresh(), other.refresh()) == (1, 1)
    written = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["reason"] for line in written] == ["broken", "gone", "named"]
    assert '"key": "ä"' in written[0]
    assert json.loads(written[0]) == {"key": "ä", "action": "skipped", "reason": "broken"}


def test_what_another_process_has_written_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    one, other = SkipFile(path, 9, 0.1), SkipFile(path, 9, 0.1)
    one.add(skipped("a"))
    other.add(skipped("a", "b"))
    one.add(skipped("b", "a"))
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b"]
    assert one.exceeded
    assert other.exceeded


def test_half_a_line_of_another_process_is_read_when_it_is_whole_and_cut_off_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    file = SkipFile(path, 9, 0.5)
    file.add([])
    assert not path.exists(), "nothing to tell, no file"
    assert file.refresh() == 0
    line = json.dumps(skipped("a")[0]._asdict())
    path.write_text(line[:9])
    assert file.refresh() == 0
    path.write_text(f"{line}\n{line[:5]}")
    assert file.refresh() == 1
    later = SkipFile(path, 9, 0.5)
    assert path.read_text() == f"{line}\n"
    assert later.refresh() == 0, "what was mended before this start does not count"
    later.add(skipped("a"))
    assert (later.refresh(), path.read_text()) == (1, f"{line}\n")
