"""What was measured, as JSON and Markdown, written anew after every row: a run that is cut off keeps what it has."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.agree import Agreement
from benchmarks.speed.ceilings import Ceilings, Work
from benchmarks.speed.clock import Duel, Timing
from imagen.disk import write_text

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "triton", "xformers", "imagen-pytorch")
#: Between networks that are not the same, most by which the operations may differ.
MATCHED = 0.1
ABSENT = "not measured"


@dataclass(frozen=True)
class Aim:
    """What a row is to reach: ``what`` is at least (or, with ``most``, at most) ``value``."""

    what: str
    value: float
    most: bool = False

    def reached(self, measured: float | None) -> bool | None:
        """None where it was not measured."""
        return None if measured is None else (measured <= self.value if self.most else measured >= self.value)


@dataclass
class Row:
    """One measurement, alone or beside a peer's.

    Attributes:
        what: in words. dtype, batch, evaluations: equal for both; an evaluation has a row for each half of guidance.
        ours, peer: seconds. ratio: the median over pairs of the peer's time over ours, above 1 ours is faster.
        work, peer_work: operations and bytes of what was timed. parameters, peer_parameters: how many there are.
        matched: what of the two networks is to be equal, within a tenth: "FLOPs" or, as the paper has it, "parameters".
        peak, peer_peak: bytes on the card, weights included.
        agreement: with float64.
        floor, bound: seconds below which this cannot be done here, and whether "FLOPs" or "bytes" say so.
        share: of the measured product rate that the work's operations were done at.
        aims: name, value, measured and whether it was reached.
        objections: why the comparison does not count; it does where there are none.
        notes: what helped the peer to run, what was compiled, and the like.
    """

    what: str
    dtype: str
    batch: int
    ours: Timing | None = None
    peer: Timing | None = None
    ratio: float | None = None
    evaluations: int | None = None
    matched: str = "FLOPs"
    work: Work | None = None
    peer_work: Work | None = None
    parameters: int | None = None
    peer_parameters: int | None = None
    peak: int | None = None
    peer_peak: int | None = None
    agreement: Agreement | None = None
    floor: float | None = None
    bound: str | None = None
    share: float | None = None
    aims: list[dict[str, Any]] = field(default_factory=list)
    objections: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fought(self, duel: Duel) -> Row:
        """With the times of a duel."""
        self.ours, self.peer, self.ratio = duel.ours, duel.peer, duel.ratio
        return self

    def bounded(self, ceilings: Ceilings, dtype: torch.dtype) -> Row:
        """With what bounds it, once work and time are known."""
        if self.work is not None and self.ours is not None:
            self.floor, self.bound = ceilings.floor(self.work, dtype)
            self.share = self.work.flops / self.ours.seconds / ceilings.products[dtype]
        return self

    def aimed(self, aim: Aim, measured: float | None) -> Row:
        """With an aim and whether it was reached."""
        self.aims.append({**asdict(aim), "measured": measured, "reached": aim.reached(measured)})
        return self

    def judged(self) -> Row:
        """With the objections to the comparison."""
        if self.agreement is not None and not self.agreement.counts:
            off = max(self.agreement.ours, self.agreement.peer or 0.0)
            self.objections.append(f"off float64 by {off:.1e}, above {self.agreement.limit:.0e}")
        flops = [None if work is None else work.flops for work in (self.work, self.peer_work)]
        both = flops if self.matched == "FLOPs" else [self.parameters, self.peer_parameters]
        if both[0] and both[1] and max(both[0] / both[1], both[1] / both[0]) > 1 + MATCHED:
            self.objections.append(f"ours has {both[0] / both[1]:.2f} times the peer's {self.matched}")
        return self


def head(command: str, device: torch.device, tree: str | None = None) -> dict[str, Any]:
    """What it takes to repeat the numbers; ``tree`` names the commit where git is not there to tell it."""
    card = "none"
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        card = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, {facts.multi_processor_count} multiprocessors"
    return {
        "command": command,
        "commit": tree or commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "device": str(device),
        "card": card,
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


def version(package: str) -> str:
    """As installed, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """Of the working tree, with "+" where it has changes; "unknown" without git."""
    told = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def processor() -> str:
    """Its name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


class Book:
    """The two files, ``speed.json`` and ``speed.md`` in a folder."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.content = folder, {**facts, "ceilings": None, "sections": []}
        folder.mkdir(parents=True, exist_ok=True)

    def ceilings(self, measured: Ceilings) -> None:
        """What the machine can do at best."""
        products = {name_of(dtype): rate for dtype, rate in measured.products.items()}
        self.content["ceilings"] = {"products": products, "copy": measured.copy}
        self.write()

    def section(self, name: str, title: str, state: str, why: str = "") -> dict[str, Any]:
        """A new section; its rows and its end are told later."""
        made = {"name": name, "title": title, "state": state, "why": why, "seconds": 0.0, "rows": []}
        self.content["sections"].append(made)
        self.write()
        return made

    def row(self, section: dict[str, Any], row: Row) -> None:
        """One more row."""
        section["rows"].append(asdict(row.judged()))
        self.write()

    def end(self, section: dict[str, Any], state: str, seconds: float, why: str = "") -> None:
        """How the section ended."""
        section.update(state=state, seconds=round(seconds, 1), why=why)
        self.write()

    def write(self) -> None:
        """Both files, each whole or as it was."""
        write_text(self.folder / "speed.json", json.dumps(self.content, indent=1) + "\n")
        write_text(self.folder / "speed.md", markdown(self.content))


def name_of(dtype: torch.dtype) -> str:
    """bfloat16, ..."""
    return str(dtype).removeprefix("torch.")


def markdown(content: Mapping[str, Any]) -> str:
    """The page: what it takes to repeat it, the ceilings, a table for each section."""
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    lines = [
        f"# Speed, commit {content['commit']}",
        "",
        f"    {content['command']}",
        "",
        f"Card: {content['card']}. Processor: {content['processor']}, {content['threads']} threads.",
        f"Python {content['python']}, {versions}.",
        "",
        ceilings_line(content["ceilings"]),
        "",
        "Times are medians, with quartiles; a ratio above 1 says that ours is faster. The floor is what operations, or",
        "the bytes that products read and write, take at the measured ceilings.",
    ]
    for section in content["sections"]:
        why = f": {section['why']}" if section["why"] else ""
        lines += ["", f"## {section['title']}", "", f"{section['state']}, {section['seconds']} s{why}"]
        if section["rows"]:
            lines += ["", *table(section["rows"])]
    return "\n".join(lines) + "\n"


def ceilings_line(ceilings: Mapping[str, Any] | None) -> str:
    """In words."""
    if ceilings is None:
        return f"Ceilings: {ABSENT}."
    products = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in ceilings["products"].items())
    return f"Ceilings, measured: products {products}; copies {ceilings['copy'] / 1e9:.4g} GB/s, read and written."


COLUMNS = (
    *("what", "dtype", "batch", "evaluations", "ours s", "peer s", "ratio", "ours GB", "peer GB", "ours TFLOP"),
    *("peer TFLOP", "floor s", "bound", "share", "off float64: ours", "peer", "aims", "counts", "notes"),
)


def table(rows: list[Mapping[str, Any]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return [*lines, *("| " + " | ".join(cells(row)) + " |" for row in rows)]


def cells(row: Mapping[str, Any]) -> list[str]:
    """One for each column."""
    works = [row["work"] or {}, row["peer_work"] or {}]
    agreement = row["agreement"] or {}
    aims = [
        f"{aim['what']} {'<=' if aim['most'] else '>='} {aim['value']:g}: "
        + (ABSENT if aim["measured"] is None else f"{aim['measured']:.2f}, {'yes' if aim['reached'] else 'NO'}")
        for aim in row["aims"]
    ]
    return [
        *(row["what"], row["dtype"], str(row["batch"]), number(row["evaluations"], "d", "")),
        *(seconds(row["ours"]), seconds(row["peer"]), number(row["ratio"], ".2f")),
        *(number(row[name] and row[name] / 1e9, ".2f") for name in ("peak", "peer_peak")),
        *(number(work.get("flops") and work["flops"] / 1e12, ".3g", "") for work in works),
        *(number(row["floor"], ".2g"), row["bound"] or "", number(row["share"], ".0%", "")),
        *(number(agreement.get(name), ".1e", "") for name in ("ours", "peer")),
        *("; ".join(aims), "; ".join(row["objections"]) or "yes", "; ".join(row["notes"])),
    ]


def number(value: float | None, form: str, absent: str = ABSENT) -> str:
    """A cell."""
    return absent if value is None else format(value, form)


def seconds(timing: Mapping[str, Any] | None) -> str:
    """Median and quartiles."""
    if timing is None:
        return ABSENT
    return f"{timing['seconds']:.4g} ({timing['low']:.4g} to {timing['high']:.4g}, {timing['repeats']} times)"
