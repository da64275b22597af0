"""Apply each stored mutation to a copy of the tree and see that the tests notice.

`tests/mutants/*.yaml` hold lists of mutations. One mutation is

    file: imagen/diffusion/losses.py    # what to change
    find: snr.clamp(max=gamma)          # text that occurs in it exactly once
    replace: snr.clamp(min=gamma)       # what to put there
    tests: tests/diffusion/test_losses.py    # what must fail then: a pytest node id, or a list of them
    name: min-SNR clamps from below     # optional, for the table

The named tests must pass on the unchanged tree and at least one must fail on the changed one. A mutation whose `find`
no longer occurs once is stale, one under which pytest cannot even collect is broken: both are errors, for neither
shows anything. The working tree is never touched: every worker has its own copy.

    python -m tests.mutants.run [--only TEXT] [--workers N] [--list]
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.mutants.warm import LIBRARIES, Warm

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutation:
    """One deliberate mistake and the tests that must notice it."""

    source: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    name: str

    def stale(self, root: Path) -> str | None:
        """Why this mutation cannot be applied to the tree at `root`, or None."""
        path = root / self.file
        if not path.is_file():
            return f"{self.file} does not exist"
        count = path.read_text(encoding="utf-8").count(self.find)
        if count != 1:
            return f"`find` occurs {count} times in {self.file}, not once"
        for test in self.tests:
            if not (root / test.split("::")[0]).exists():
                return f"{test} does not exist"
        return None


@dataclass(frozen=True)
class Result:
    """What became of a mutation; `caught` is the only good end."""

    mutation: Mutation
    verdict: str
    seconds: float
    detail: str = ""


class Entries(yaml.SafeLoader):
    """YAML in which no key stands twice in one entry: the second would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises: ValueError for a key that stands twice."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{key!r} stands twice in the entry at line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def load(folder: Path) -> list[Mutation]:
    """All mutations of the YAML files in `folder`. Raises ValueError for a malformed one."""
    mutations = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            entries = yaml.load(path.read_text(encoding="utf-8"), Entries) or []
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
        for number, entry in enumerate(entries, 1):
            where = f"{path.name}, entry {number}"
            needed, allowed = {"file", "find", "replace", "tests"}, {"file", "find", "replace", "tests", "name"}
            if not isinstance(entry, dict) or not needed <= set(entry) <= allowed:
                raise ValueError(
                    f"{where}: expected the keys file, find, replace, tests and perhaps name, got {entry!r}"
                )
            tests = [entry["tests"]] if isinstance(entry["tests"], str) else entry["tests"]
            name = entry.get("name") or f"{' '.join(entry['find'].split())}  ->  {' '.join(entry['replace'].split())}"
            if entry["find"] == entry["replace"]:
                raise ValueError(f"{where}: `find` and `replace` are the same text {entry['find']!r}")
            mutations.append(Mutation(where, entry["file"], entry["find"], entry["replace"], tuple(tests), name))
    return mutations


def copy_tree(root: Path, target: Path) -> None:
    """Copy what git tracks or would track, and link the large trained files instead of copying them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        source, copy = root / name, target / name
        if not source.is_file():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".safetensors":
            copy.symlink_to(source)
        else:
            shutil.copyfile(source, copy)


def run_tests(warm: Warm, tests: Sequence[str], stop_early: bool = True) -> tuple[int, str]:
    """Run pytest on `tests` in the tree of `warm`; returns its exit status and the end of what it printed."""
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    status, output = warm.run([*options, *(["-x"] if stop_early else []), *tests])
    return status, "\n".join(output.splitlines()[-15:])


def check_unchanged(warm: Sequence[Warm], tests: Sequence[str]) -> None:
    """Exit unless `tests`, dealt out to the processes, pass on the unchanged tree."""
    hands = [hand for start in range(len(warm)) if (hand := tests[start :: len(warm)])]
    with ThreadPoolExecutor(len(warm)) as pool:
        for status, tail in pool.map(lambda one, hand: run_tests(one, hand, stop_early=False), warm, hands):
            if status != 0:
                sys.exit(f"the named tests do not pass on the unchanged tree (pytest's status {status}):\n{tail}")


def try_one(mutation: Mutation, tree: Path, warm: Warm) -> Result:
    """Apply `mutation` to `tree`, run its tests, and put the file back."""
    stale = mutation.stale(tree)
    if stale:
        return Result(mutation, "STALE", 0.0, stale)
    path, start = tree / mutation.file, time.monotonic()
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(mutation.find, mutation.replace), encoding="utf-8")
    try:
        status, tail = run_tests(warm, mutation.tests)
    finally:
        path.write_text(original, encoding="utf-8")
    verdict = {0: "SURVIVED", 1: "caught"}.get(status, "BROKEN")  # 1: tests ran and failed
    return Result(mutation, verdict, time.monotonic() - start, "" if verdict == "caught" else tail)


def try_all(mutations: Sequence[Mutation], root: Path, workers: int) -> list[Result]:
    """Try every mutation, `workers` at a time, printing a line as each one ends; results in the order given."""
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(mutations)):
        jobs.put(index)
    results: dict[int, Result] = {}

    def work(tree: Path, warm: Warm) -> None:
        while True:
            try:
                index = jobs.get_nowait()
            except queue.Empty:
                return
            results[index] = result = try_one(mutations[index], tree, warm)
            print(
                f"{result.verdict:9}{result.seconds:6.1f} s  {result.mutation.file}: {result.mutation.name[:100]}",
                flush=True,
            )

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [Path(folder) / str(i) for i in range(max(1, min(workers, len(mutations))))]
        for tree in trees:
            copy_tree(root, tree)
        with contextlib.ExitStack() as stack:
            libraries = LIBRARIES if root == ROOT else ""  # the small trees of this runner's own tests need none
            warm = [stack.enter_context(contextlib.closing(Warm(tree, libraries))) for tree in trees]
            print("the named tests on the unchanged tree ...", flush=True)
            check_unchanged(warm, sorted({test for m in mutations for test in m.tests}))
            threads = [threading.Thread(target=work, args=pair) for pair in zip(trees, warm, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    return [results[index] for index in range(len(mutations))]


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the mutations stored under `root`; returns the exit status: 0 if every one was caught."""
    parser = argparse.ArgumentParser(description="apply stored mutations to copies of the tree; tests must fail")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only those whose file, name or YAML file holds TEXT"
    )
    parser.add_argument("--workers", type=int, default=2, help="mutations tried at the same time (default 2)")
    parser.add_argument("--list", action="store_true", help="list the mutations and which are stale; run nothing")
    args = parser.parse_args(argv)

    mutations = load(root / "tests" / "mutants")
    mutations = [m for m in mutations if args.only in f"{m.source} {m.file} {m.name}"]
    if not mutations:
        sys.exit(f"no stored mutation matches --only {args.only!r}")
    if args.list:
        for m in mutations:
            print(f"{m.source:32}{m.file:40}{m.name[:90]}" + (f"  STALE: {s}" if (s := m.stale(root)) else ""))
        return int(any(m.stale(root) for m in mutations))

    fresh = [m for m in mutations if not m.stale(root)]
    results = [Result(m, "STALE", 0.0, m.stale(root) or "") for m in mutations if m not in fresh]
    results += try_all(fresh, root, args.workers) if fresh else []
    failed = [result for result in results if result.verdict != "caught"]
    for result in failed:
        m = result.mutation
        print(f"\n{result.verdict}: {m.source}: {m.file}: {m.name}\n{result.detail}")
    print(f"\n{len(results) - len(failed)} passed, {len(failed)} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
