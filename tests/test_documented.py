"""Public names, command-line options and keys of configurations are documented, and every key is read."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

from tests.source import CODE, ROOT, expect_none, tree


def test_public_names_have_docstrings() -> None:
    problems, names = [], 0
    for path in CODE:
        if not ast.get_docstring(tree(path)) and (ROOT / path).read_text().strip():
            problems.append(f"{path} has no docstring")
        for node in tree(path).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            names += public
            if public and not ast.get_docstring(node):
                problems.append(f"{path}:{node.lineno} {node.name} has no docstring")
    expect_none(problems, names, 500)


def test_every_command_line_option_is_documented() -> None:
    problems, options = [], 0
    for path in CODE:
        for node in ast.walk(tree(path)):
            named = isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
            if isinstance(node, ast.Call) and named and re.fullmatch(r".*add_argument|add", ast.unparse(node.func)):
                options += 1
                helped = [k for k in node.keywords if k.arg == "help" and ast.unparse(k.value) not in ("''", "None")]
                if not helped:
                    problems.append(f"{path}:{node.lineno} {ast.unparse(node)[:70]} has no help")
    expect_none(problems, options, 60)


def config_fields() -> list[tuple[Path, str, str, bool]]:
    """(file, class, field, documented) of every dataclass in a file or a folder called config, in any part."""
    fields = []
    for path in (p for p in CODE if p.parts[0] == "imagen" and "config" in (p.stem, p.parent.name)):
        for cls in (n for n in tree(path).body if isinstance(n, ast.ClassDef)):
            if not any("dataclass" in ast.unparse(d) for d in cls.decorator_list):
                continue
            doc = ast.get_docstring(cls) or ""
            for node, after in zip(cls.body, [*cls.body[1:], None], strict=True):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    name = node.target.id
                    if ast.unparse(node.annotation).endswith("Config"):
                        continue  # a group: its own class describes it
                    below = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    fields.append((path, cls.name, name, below or bool(re.search(rf"\b{name}\b.*:", doc))))
    return fields


def test_every_config_option_is_documented_and_read() -> None:
    text = {path: (ROOT / path).read_text(encoding="utf-8") for path in CODE}
    problems = []
    fields = config_fields()
    classes = Counter(cls for _, cls, _, _ in fields)
    assert len(fields) >= 90, f"only {len(fields)} options found, of {dict(classes)}: where have the others gone?"
    assert {"DataConfig", "TrainConfig", "StageConfig", "OptimConfig", "LoraConfig"} <= classes.keys()
    for path, cls, name, documented in fields:
        if not documented:
            problems.append(f"{path}: {cls}.{name} is not documented")
        if not any(re.search(rf"\.{name}\b(?!\s*=[^=])|[\"']{name}[\"']", source) for source in text.values()):
            problems.append(f"{path}: {cls}.{name} is an option that nobody reads")
    expect_none(problems)
