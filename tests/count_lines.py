"""How much code there is at a commit, and how much of it a commit touched; nothing is checked out.

    python -m tests.count_lines REV [REV ...]              lines of code by folder, longest files and functions
    python -m tests.count_lines OLD NEW --added REV ...    ... and how long NEW is without what these commits added
    python -m tests.count_lines --touched REV [REV ...]    files that each commit changed and added

A line of code holds a token that is no comment and no docstring. Counted are imagen/, unets/, train.py and sample.py.
What a commit added is what it made the code longer by: so a redesign can be told from what came with it that is new.
What a commit touched is told of all files but tests, docs, configs and *.md: how many places a change needed.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COUNTED = ("imagen", "unets", "train.py", "sample.py")
ASIDE = ("tests", "docs", "configs")
MOST_ARGUMENTS = 8
LAYOUT = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class FileCount:
    """What is counted in one file; a function is (lines of code, arguments, path:line name)."""

    path: str
    lines: int
    anys: int
    functions: tuple[tuple[int, int, str], ...]


def git(*arguments: str, root: Path = ROOT) -> str:
    """What git prints. Raises: ValueError with its own first line of complaint."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["git failed"])[0])
    return done.stdout


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code: no blanks, no comments, no docstrings (of definitions or of attributes)."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def count(path: str, source: str) -> FileCount:
    """Count one file."""
    lines, tree = code_lines(source), ast.parse(source)
    functions = []
    for node in ast.walk(tree):
        if isinstance(node, Function):
            inside = sum(node.lineno <= line <= (node.end_lineno or node.lineno) for line in lines)
            functions.append((inside, arguments(node), f"{path}:{node.lineno} {node.name}"))
    return FileCount(path, len(lines), sum(map(is_any, ast.walk(tree))), tuple(functions))


def is_any(node: ast.AST) -> bool:
    """`Any` or `typing.Any`, where it is used (its import is not)."""
    return (isinstance(node, ast.Name) and node.id == "Any") or (isinstance(node, ast.Attribute) and node.attr == "Any")


def arguments(node: Function) -> int:
    """How many arguments a function takes, `self` and `cls` aside; *args and **kwargs are one each."""
    given = node.args
    named = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    bound = bool(named) and named[0] in ("self", "cls")
    return len(named) - bound + (given.vararg is not None) + (given.kwarg is not None)


def read(revision: str, root: Path = ROOT, paths: Sequence[str] = COUNTED) -> Iterator[FileCount]:
    """Every counted file of these at a revision. Raises: ValueError for a revision that is none."""
    short = git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}", root=root).strip()
    listed = git("ls-tree", "-r", "--name-only", short, "--", *paths, root=root) if paths else ""
    for path in listed.splitlines():
        if path.endswith(".py"):
            yield count(path, git("show", f"{short}:{path}", root=root))


def folder(path: str) -> str:
    """imagen/a/b.py -> imagen/a; imagen/b.py -> imagen; train.py -> train.py."""
    parts = path.split("/")
    return "/".join(parts[: min(2, max(1, len(parts) - 1))])


def table(counts: dict[str, list[FileCount]]) -> str:
    """Lines of code by folder, and in all, a column a revision; and how many files, `Any`, and wide functions."""
    sums: dict[str, Counter[str]] = {}
    for revision, files in counts.items():
        sums[revision] = by = Counter()
        for file in files:
            by[folder(file.path)] += file.lines
        by["all"] = sum(file.lines for file in files)
        by["files"] = len(files)
        by["Any"] = sum(file.anys for file in files)
        by[f"functions with more than {MOST_ARGUMENTS} arguments"] = len(wide(files))
    last = list(next(iter(sums.values())))[-4:]
    rows = [*sorted({row for by in sums.values() for row in by} - set(last)), *last]
    lines = [f"{'lines of code':48}" + "".join(f"{revision[:14]:>16}" for revision in counts)]
    lines += [f"{row:48}" + "".join(f"{sums[revision][row]:>16,}" for revision in counts) for row in rows]
    return "\n".join(lines)


def wide(files: Sequence[FileCount]) -> list[tuple[int, int, str]]:
    """Functions with more than `MOST_ARGUMENTS` arguments, the widest first."""
    found = [function for file in files for function in file.functions if function[1] > MOST_ARGUMENTS]
    return sorted(found, key=lambda function: -function[1])


def longest(files: Sequence[FileCount], most: int) -> str:
    """The longest files and functions, and every wide function, as text."""
    by_length = sorted(files, key=lambda file: -file.lines)[:most]
    functions = sorted((function for file in files for function in file.functions), reverse=True)[:most]
    lines = ["longest files", *(f"{file.lines:6}  {file.path}" for file in by_length)]
    lines += ["longest functions", *(f"{function[0]:6}  {function[2]}" for function in functions)]
    lines += [f"more than {MOST_ARGUMENTS} arguments", *(f"{f[1]:6}  {f[2]}" for f in wide(files))]
    return "\n".join(lines)


def touched(revision: str, root: Path = ROOT) -> dict[str, list[str]]:
    """{"changed": ..., "new": ..., "removed": ...}: files of one commit against its first parent; a move is a change.

    Raises:
        ValueError: no such commit.
    """
    options = ("--name-status", "-M", "-r", "--root", "-m", "--first-parent", "--format=", "--no-show-signature")
    found: dict[str, list[str]] = {"changed": [], "new": [], "removed": []}
    for line in git("show", *options, "--end-of-options", revision, "--", root=root).splitlines():
        status, *paths = line.split("\t")
        if paths and paths[-1].split("/")[0] not in ASIDE and not paths[-1].endswith(".md"):
            found[{"A": "new", "D": "removed"}.get(status[0], "changed")].append(" -> ".join(paths))
    return found


def without(counts: dict[str, list[FileCount]], commits: Sequence[str], root: Path = ROOT) -> str:
    """What each of the commits added to the lines of code, and how many the last revision has without them, as text.

    Raises:
        ValueError: no such commit.
    """
    lines, added = ["lines of code that commits added"], 0
    for commit in commits:
        words = git("log", "-1", "--format=%h %s", "--end-of-options", commit, "--", root=root).strip()
        paths = git("diff", "--name-only", "--no-renames", f"{commit}^", commit, "--", *COUNTED, root=root).splitlines()
        before, here = (sum(file.lines for file in read(end, root, paths)) for end in (f"{commit}^", commit))
        added += here - before
        lines.append(f"{here - before:+6}  {words}")
    (old, *_), (new, *_) = counts, reversed(counts)
    was, now = (sum(file.lines for file in counts[revision]) for revision in (old, new))
    lines.append(f"{added:+6}  all of them: {old} has {was:,} lines, {new} {now:,}, without them {now - added:,}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.count_lines", description="lines of code at commits")
    parser.add_argument("revisions", nargs="+", metavar="REV", help="commits")
    parser.add_argument("--touched", action="store_true", help="count the files that these commits changed and added")
    parser.add_argument("--added", nargs="+", default=[], metavar="REV", help="commits that brought something new")
    parser.add_argument("--longest", type=int, default=8, metavar="N", help="files and functions named; default 8")
    args = parser.parse_args(argv)
    try:
        if args.touched:
            for revision in args.revisions:
                kinds = touched(revision, root)
                print(revision + ": " + ", ".join(f"{len(paths)} {kind}" for kind, paths in kinds.items()))
                print("".join(f"  {kind:8} {path}\n" for kind, paths in kinds.items() for path in paths), end="")
            return 0
        counts = {revision: list(read(revision, root)) for revision in args.revisions}
        new = without(counts, args.added, root) if args.added else ""
    except ValueError as error:
        print(f"count_lines: error: {error}", file=sys.stderr)
        return 2
    print(table(counts))
    for revision, files in counts.items():
        print(f"\n{revision}\n{longest(files, args.longest)}")
    if new:
        print(f"\n{new}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
