"""Show that a refactoring moves no number: two commits draw, train, resume and load the same, and are compared.

    python -m tests.compare_commits BEFORE AFTER [--quick] [--only pictures|training|stored]

BEFORE and AFTER are commits, or folders that hold the code (`.` is the working tree with what is not committed). Each
is put into a temporary folder and run there by this interpreter, one thread each, side by side. Compared are

    pictures   of the shipped model, to the bit: three sizes, shapes, guidance, samplers, sample.py
    training   losses, weights and grids of tiny runs of every kind of stage, in float64, to 1e-12; and runs that
               BEFORE began, which AFTER takes to the end
    stored     pipelines and stages in every stored format, and BEFORE's exports composed: settings and pictures

Exit status: 0 nothing differs; 1 something does, and the table says what; 2 there is no such commit.
It takes about five minutes on two cores (--quick: one). A change that is meant to move numbers shows here as well.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.compare_commits import inputs
from tests.compare_commits.differences import Row, compare
from tests.mutants.run import copy_tree

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("before", "after")
GROUPS = ("pictures", "training", "stored")


def checkout(name: str, target: Path, root: Path = ROOT) -> str:
    """Put a commit, or a copy of the folder of that name, into `target`; returns what it is, for the table.

    Raises:
        ValueError: there is no such commit.
    """
    target.mkdir(parents=True)
    if (root / name / "train.py").is_file():
        copy_tree((root / name).resolve(), target)
        return f"the folder {name}"
    command = ["git", "log", "-1", "--format=%h %s", "--end-of-options", name, "--"]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout.strip():
        raise ValueError(f"{name!r} is no commit and no folder with train.py: give a commit, a branch or .")
    short = found.stdout.split()[0]
    archive = subprocess.run(["git", "archive", short], cwd=root, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(target, filter="data")
    return found.stdout.strip()


def probe(work: Path, checks: Sequence[str], quick: bool) -> None:
    """Run `checks` in both trees, side by side. Raises: RuntimeError where one breaks off, with its last words."""
    running = {}
    try:
        for side in SIDES:
            tree, log = work / "trees" / side, (work / f"{side}.log").open("a", encoding="utf-8")
            settings = {
                "PYTHONPATH": str(tree),
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "HF_HUB_OFFLINE": "1",
            }
            settings |= {"ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
            command = [sys.executable, str(Path(__file__).with_name("probe.py")), side, str(work), *checks]
            command += ["--quick"] if quick else []
            with log:
                running[side] = subprocess.Popen(command, cwd=tree, env=os.environ | settings, stderr=log)
        failed = [side for side, process in running.items() if process.wait()]
    finally:
        for process in running.values():
            process.kill()
    for side in failed:
        words = (work / f"{side}.log").read_text(encoding="utf-8").splitlines()[-15:]
        raise RuntimeError(f"{side} broke off:\n" + "\n".join(words))


def run(work: Path, groups: Sequence[str], quick: bool) -> list[Row]:
    """Both trees lie in work/trees; what is compared of them, one row a check."""
    tree = work / "trees" / "before"
    t5 = tree / "pretrained" / "shapes"
    first, second = [g for g in GROUPS[:2] if g in groups], []
    if "stored" in groups:
        inputs.write_pipelines(work / "pipelines", t5)
        (work / "pipelines" / "as BEFORE ships it").symlink_to(t5)
        second += ["formats"]
    if "training" in groups:
        (work / "configs").mkdir()
        inputs.write_configs(work / "configs", t5)
        second += ["resuming"]
    if first:
        probe(work, first, quick)
    if {"training", "stored"} <= set(groups):
        model = work / "runs" / "before" / "base, learned variance" / "model"
        if model.is_dir():
            inputs.write_stages(work / "stages", model, t5)
            second += ["stages"]
    if second:
        probe(work, second, quick)
    before, after = (work / "results" / side for side in SIDES)
    names = dict.fromkeys(path.name for folder in (before, after) for path in sorted(folder.iterdir()))
    return [compare(before / name, after / name) for name in names]


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    print(f"\n{'compared':52}{'numbers':>10}{'largest difference':>20}")
    for row in rows:
        print(f"{row.name:52}{row.numbers:>10,}{row.largest:>20.3g}" + ("" if row.first is None else "  DIFFERENT"))
    different = [row for row in rows if row.first is not None]
    for row in different:
        print(f"\n{row.name}: {row.first}")
    total = sum(row.numbers for row in rows)
    verdict = f"{len(different)} of {len(rows)} checks differ" if different else f"all {len(rows)} checks are the same"
    print(f"\n{verdict} ({total:,} numbers)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.compare_commits", description="compare two commits: pictures, training, stored models"
    )
    parser.add_argument("before", metavar="BEFORE", help="a commit, or a folder that holds the code")
    parser.add_argument("after", metavar="AFTER", help="the same; . is the working tree")
    parser.add_argument("--quick", action="store_true", help="fewer steps and samplers, nothing at 1024 px")
    parser.add_argument(
        "--only", choices=GROUPS, action="append", help="compare these alone (stages need training and stored)"
    )
    args = parser.parse_args(argv)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        work = Path(folder).resolve()
        try:
            for side, name in zip(SIDES, (args.before, args.after), strict=True):
                print(f"{side:>7}: {checkout(name, work / 'trees' / side)}", flush=True)
        except ValueError as error:
            print(f"compare_commits: error: {error}", file=sys.stderr)
            return 2
        try:
            rows = run(work, args.only or GROUPS, args.quick)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    show(rows)
    print(f"{time.monotonic() - start:.0f} s")
    return int(any(row.first is not None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
