"""The source files, parsed, for the tests that read them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(
    path.relative_to(ROOT)
    for pattern in ("imagen/**/*.py", "unets/**/*.py", "train.py", "sample.py")
    for path in ROOT.glob(pattern)
)
EVERYTHING = sorted({*CODE, *(p.relative_to(ROOT) for d in ("tests", "benchmarks") for p in (ROOT / d).rglob("*.py"))})


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, nodes: Iterator[ast.AST] | None = None) -> Iterator[tuple[int, str]]:
    """Line and full name of what `path` imports, in functions too; `from a import b` counts as a.b if b is a module."""
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in nodes or ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                deeper = (ROOT / module.replace(".", "/") / f"{alias.name}.py").exists()
                deeper = deeper or (ROOT / module.replace(".", "/") / alias.name / "__init__.py").exists()
                yield node.lineno, f"{module}.{alias.name}" if deeper else module


def functions(path: Path) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Every function, and whether it spells its arguments out by right: constructors, a network's forward, the call."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            forward = path.parts[0] == "unets" and node.name == "forward"
            call = path == Path("imagen/pipeline.py") and node.name == "__call__"
            yield node, node.name == "__init__" or forward or call


def expect_none(problems: list[str], looked_at: int = 1, least: int = 1) -> None:
    """No problems in what was looked at, and enough of it: folders that move must not leave a test with nothing."""
    assert not problems, "\n" + "\n".join(problems)
    assert looked_at >= least, f"only {looked_at} found to look at, {least} expected: where have the others gone?"
