"""The progress line: what is left counts from this start, and off a terminal little is said."""

from __future__ import annotations

import io

import pytest

from imagen.training import telling
from imagen.training.telling import Progress


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
