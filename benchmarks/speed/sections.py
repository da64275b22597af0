"""Sections that stand alone: each in its box of time, and one that fails does not keep the others from running."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.speed.ceilings import Ceilings, measure_ceilings
from benchmarks.speed.clock import Clock, OutOfTime, time_box
from benchmarks.speed.report import Book, Row
from benchmarks.speed.sizes import Sizes
from imagen.errors import one_line


class NotHere(RuntimeError):
    """A package or a device that a section needs is not there."""


@dataclass
class Bench:
    """What sections share.

    Attributes:
        ceilings: measured before the first section.
    """

    clock: Clock
    sizes: Sizes
    ceilings: Ceilings = field(init=False)

    @property
    def device(self) -> torch.device:
        """Where it is measured."""
        return self.clock.device

    def need_card(self) -> None:
        """Raises NotHere where there is none, unless this is the rehearsal of all sections."""
        if not self.clock.cuda and not self.sizes.rehearsal:
            raise NotHere("needs a card")


@dataclass(frozen=True)
class Section:
    """Rows, one after the other.

    Attributes:
        run: makes and checks what it times, then yields each row when it is measured.
        box: most seconds on a card, what it compiles included.
    """

    name: str
    title: str
    run: Callable[[Bench], Iterator[Row]]
    box: float


#: Fewer seconds than this are not worth a section's beginning.
LEAST = 5.0


def run_sections(
    sections: Sequence[Section], bench: Bench, book: Book, budget: float, after: Callable[[], object] = lambda: None
) -> None:
    """All of them, in their order, within ``budget`` seconds in all; ``after`` is called behind each that ran."""
    until = time.monotonic() + budget
    opening = Section("ceilings", "The machine's ceilings", find_ceilings(book), 60.0)
    for section in (opening, *sections):
        left = until - time.monotonic()
        if section is not opening and not hasattr(bench, "ceilings"):
            book.section(section.name, section.title, "not measured", "without the machine's ceilings")
        elif left < min(LEAST, section.box):
            told = f"{max(left, 0):.0f} s of {budget:.0f} were left; ask for it alone: --only {section.name}"
            book.section(section.name, section.title, "not measured", told)
        else:
            run_one(section, bench, book, min(left, section.box * bench.sizes.patience))
            after()
        free(bench)


def find_ceilings(book: Book) -> Callable[[Bench], Iterator[Row]]:
    """A section without rows that measures what all others are compared with."""

    def find(bench: Bench) -> Iterator[Row]:
        sizes = bench.sizes
        bench.ceilings = measure_ceilings(bench.clock, sizes.product_side, sizes.copy_bytes, sizes.ceiling_dtypes)
        book.ceilings(bench.ceilings)
        return iter(())

    return find


def run_one(section: Section, bench: Bench, book: Book, box: float) -> None:
    """One, whatever becomes of it."""
    begin = time.monotonic()
    told = book.section(section.name, section.title, "running")
    state, why = "done", ""
    try:
        with time_box(box):
            for row in section.run(bench):
                book.row(told, row)
    except OutOfTime as over:
        state, why = "out of time", f"{over}; the rows that are there count"
    except NotHere as missing:
        state, why = "not measured", str(missing)
    except Exception as error:  # of any library; the other sections are independent of it
        state, why = "failed", f"{type(error).__name__}: {one_line(error)}"
        told["traceback"] = traceback.format_exc()
    book.end(told, state, time.monotonic() - begin, why)
    print(f"{section.name}: {state} after {time.monotonic() - begin:.0f} s {why}", flush=True)


def free(bench: Bench) -> None:
    """Give a section's memory back, that of graphs which were recorded for it, too."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if bench.clock.cuda:
        torch.cuda.empty_cache()
