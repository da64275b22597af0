"""Sections stand alone: what becomes of one is told, and the others go on; everything is on the disk as it comes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed.agree import Agreement
from benchmarks.speed.ceilings import Ceilings, Work
from benchmarks.speed.clock import Clock, Duel, Timing
from benchmarks.speed.report import ABSENT, Aim, Book, Row, cells, head
from benchmarks.speed.sampling import high
from benchmarks.speed.sections import Bench, NotHere, Section, run_sections
from benchmarks.speed.sizes import CPU, QUICK
from benchmarks.speed.training import efficient, small


def row(what: str = "a row") -> Row:
    return Row(what, "float32", 2)


def good(bench: Bench) -> Iterator[Row]:
    yield row()


def breaks(bench: Bench) -> Iterator[Row]:
    yield row("before it broke")
    raise ValueError("the second\nnetwork broke")


def hangs(bench: Bench) -> Iterator[Row]:
    yield row("before it hung")
    time.sleep(15)


def lacks(bench: Bench) -> Iterator[Row]:
    raise NotHere("imagen-pytorch is not installed")
    yield row()


def on_card(bench: Bench) -> Iterator[Row]:
    bench.need_card()
    yield row()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """run(sections, budget) -> the sections of speed.json, the ceilings' own left out."""

    def go(*sections: Section, budget: float = 100.0, sizes: Any = QUICK) -> list[dict[str, Any]]:
        bench = Bench(Clock(torch.device("cpu")), sizes)
        run_sections(sections, bench, Book(tmp_path, head("a command", bench.device)), budget)
        told: list[dict[str, Any]] = json.loads((tmp_path / "speed.json").read_text())["sections"]
        return [section for section in told if section["name"] != "ceilings"]

    return go


def test_what_fails_or_hangs_or_lacks_something_is_told_and_the_others_go_on(run: Any, tmp_path: Path) -> None:
    sections = [
        Section("breaks", "Breaks", breaks, 9),
        Section("hangs", "Hangs", hangs, 0.05),
        Section("lacks", "Lacks", lacks, 9),
        Section("good", "Good", good, 9),
    ]
    told = {section["name"]: section for section in run(*sections)}
    assert {name: one["state"] for name, one in told.items()} == {
        "breaks": "failed",
        "hangs": "out of time",
        "lacks": "not measured",
        "good": "done",
    }
    assert told["breaks"]["why"] == "ValueError: the second network broke"
    assert "raise ValueError" in told["breaks"]["traceback"]
    assert [one["what"] for name in ("breaks", "hangs") for one in told[name]["rows"]] == [
        "before it broke",
        "before it hung",
    ], "what a section had measured is kept"
    assert told["lacks"]["why"] == "imagen-pytorch is not installed"
    page = (tmp_path / "speed.md").read_text()
    assert "before it hung" in page
    assert " s: ValueError: the second network broke" in page


def test_without_a_card_what_needs_one_reads_not_measured(run: Any) -> None:
    (told,) = run(Section("card", "Card", on_card, 9), sizes=replace(CPU, product_side=32, copy_bytes=2**12))
    assert (told["state"], told["why"], told["rows"]) == ("not measured", "needs a card", [])
    assert run(Section("card", "Card", on_card, 9))[0]["state"] == "done", "but in the rehearsal it runs"


def test_what_does_not_fit_into_the_time_that_is_left_is_not_begun(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.sections.LEAST", 1000.0)
    told = run(Section("long", "Long", good, 5000), Section("short", "Short", good, 9))
    assert told[0]["state"] == ABSENT
    assert told[0]["why"].endswith("s of 100 were left; ask for it alone: --only long")
    assert told[1]["state"] == "done", "a short one fits"


def test_a_section_gets_no_more_than_what_is_left_of_the_whole(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.sections.LEAST", 0.0)
    begin = time.monotonic()
    told = run(Section("hangs", "Hangs", hangs, 50), budget=5.0)
    assert told[0]["state"] == "out of time"
    assert time.monotonic() - begin < 14


def test_without_ceilings_nothing_is_measured(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.ceilings.copy_rate", lambda *_: 1 / 0)
    told = run(Section("good", "Good", good, 9))
    assert told[0]["why"] == "without the machine's ceilings"


def test_every_row_is_on_the_disk_when_it_comes(tmp_path: Path) -> None:
    book = Book(tmp_path, head("a command", torch.device("cpu")))
    section = book.section("one", "One", "running")
    for count in (1, 2):
        book.row(section, row(f"row {count}"))
        told = json.loads((tmp_path / "speed.json").read_text())
        assert len(told["sections"][0]["rows"]) == count
        assert told["sections"][0]["state"] == "running"
        assert f"row {count}" in (tmp_path / "speed.md").read_text()


def test_a_row_says_whether_it_counts_and_whether_its_aims_are_reached() -> None:
    timing = Timing(2.0, 1.0, 3.0, 5)
    made = Row("ours and the peer's", "bfloat16", 4, agreement=Agreement(2e-2, 2e-2, 1e-2))
    made.fought(Duel(timing, Timing(5.0, 4.0, 6.0, 5), 2.5))
    made.work, made.peer_work = Work(3e12, 1.0), Work(2e12, 1.0)
    made.aimed(Aim("ratio", 2.0), 2.5).aimed(Aim("memory", 0.7, most=True), 0.8).aimed(Aim("other", 1.0), None)
    objections = made.judged().objections
    assert objections == ["off float64 by 2.0e-02, above 1e-02", "ours has 1.50 times the peer's FLOPs"]
    assert [aim["reached"] for aim in made.aims] == [True, False, None]
    told = cells(json.loads(json.dumps(made, default=vars)))
    assert "2 (1 to 3, 5 times)" in told
    assert "2.50" in told
    assert "ratio >= 2: 2.50, yes; memory <= 0.7: 0.80, NO; other >= 1: not measured" in told


@pytest.mark.parametrize(("ours", "peer", "counts"), [(109, 100, True), (111, 100, False), (100, 111, False)])
def test_networks_differ_by_a_tenth_at_most(ours: float, peer: float, counts: bool) -> None:
    made = Row("two", "float32", 1, work=Work(ours, 1.0), peer_work=Work(peer, 1.0)).judged()
    assert (made.objections == []) is counts
    other = Row("two", "float32", 1, matched="parameters", work=Work(1.0, 1.0), peer_work=Work(9.0, 1.0))
    other.parameters, other.peer_parameters = int(ours), int(peer)
    assert (other.judged().objections == []) is counts, (
        "what the paper compares at equal parameters may differ in FLOPs"
    )


class Card(Clock):
    """The processor, taken for a card on which a call holds a megabyte, and twice as much with another's."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.cuda = True

    def wait(self) -> None:
        """Nothing runs on."""

    def held(self) -> int:
        return 5 * 10**6

    def peak(self, call: Any, others: int = 0) -> int:
        call()
        return others + 10**6


def test_on_a_card_memory_is_measured_and_aimed_at() -> None:
    bench = Bench(Card(), replace(QUICK, train_dtype=torch.bfloat16, pairs=1))
    bench.ceilings = Ceilings(dict.fromkeys((torch.bfloat16, torch.float32), 1e12), 1e9)
    rows = list(high(bench))
    assert [row.peak for row in rows] == [10**6] * 3
    assert all(row.ours is not None and row.agreement is not None for row in rows)
    assert [aim["measured"] for aim in rows[0].aims] == [1e-3, 1.0]
    assert rows[1].aims[1]["reached"], "as much for four times the pixels"
    (trained,) = small(bench)
    assert trained.peak == 6 * 10**6, "what was there before is handed on, to be left out"
    assert trained.share == pytest.approx(trained.work.flops / trained.ours.seconds / 1e12)
    (aim,) = trained.aims
    assert (aim["what"], aim["value"], aim["measured"]) == ("share of the product rate", 0.3, trained.share)
    (fought,) = efficient(bench)
    assert fought.peer_peak == 6 * 10**6
    assert fought.matched == "parameters"
    assert fought.floor == max(fought.work.flops / 1e12, fought.work.traffic / 1e9)
