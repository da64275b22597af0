"""The shape of the house: who imports whom, what an import costs, how long a file may be, what must be documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(
    path.relative_to(ROOT)
    for pattern in ("imagen/**/*.py", "unets/**/*.py", "train.py", "sample.py")
    for path in ROOT.glob(pattern)
)
EVERYTHING = sorted(
    {*CODE, *(p.relative_to(ROOT) for d in ("tests", "benchmarks", "scripts") for p in (ROOT / d).rglob("*.py"))}
)

# Part of the house -> the parts it may import. A part is the longest prefix named here. Nobody imports upwards.
BASE = {"imagen.checks", "imagen.disk", "imagen.errors"}
ROOMS = {"imagen.diffusion", "imagen.text", "imagen.data"}
CORE = {"unets", *ROOMS, *BASE}
LOWER = {"imagen.conditions", "imagen.stages", *CORE}
BELOW_PIPELINE = {"imagen.cascade", *LOWER}
MAY_IMPORT = {
    "unets": {"unets"},
    **{part: {part, *BASE} for part in ROOMS},
    **{part: set() for part in BASE},
    "imagen.conditions": {"imagen.conditions", *CORE},
    "imagen.stages": {"imagen.stages", *CORE},
    "imagen.cascade": {"imagen.cascade", *LOWER},
    "imagen.pipeline": {"imagen.pipeline", *BELOW_PIPELINE},
    "imagen.training": {"imagen.training", "imagen.data", *BASE},
    "imagen.cascade.training": {"imagen.cascade.training", "imagen.training", "imagen.pipeline", *BELOW_PIPELINE},
    "imagen.evaluation": {"imagen.evaluation", "imagen.pipeline", *BELOW_PIPELINE},
    "imagen.convert": {"imagen.convert", "imagen.pipeline", *BELOW_PIPELINE},
    "imagen": {"imagen", "imagen.pipeline"},
}
# What people start: nothing but a call of imagen.cli, and nobody imports it.
ENTRIES = ("train", "sample", "imagen.text.cache.__main__", "imagen.training.compose")
MAY_IMPORT["imagen.cli"] = {"imagen.cli", *MAY_IMPORT}
MAY_IMPORT.update({entry: {"imagen.cli"} for entry in ENTRIES})
# Outside packages a part may use beside the standard library and, in functions, the extras; others are free in this.
OUTSIDE = {"imagen.diffusion": {"torch"}, "unets": {"torch", "diffusers"}, "train": set(), "sample": set()}
OUTSIDE_FILES = {
    "imagen/diffusion/sampling.py": {"torch", "diffusers"},
    "unets/count.py": {"torch", "diffusers", "yaml"},  # a script: reads configs
}
# Packages of the extras (setup.cfg): imported only inside the function that needs them.
EXTRAS = {
    "matplotlib",
    "scipy",
    "torchmetrics",
    "tensorboard",
    "peft",
    "datasets",
    "pyarrow",
    "xformers",
    "cv2",
    "bitsandbytes",
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The longest entry of MAY_IMPORT that `module` lies in, or its top-level package."""
    found = [part for part in MAY_IMPORT if module == part or module.startswith(part + ".")]
    return max(found, key=len, default=module.split(".")[0])


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


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The statements that run when a module is imported: all but function bodies and `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for name in ("body", "orelse", "finalbody"):
            yield from at_import(getattr(node, name, []))
        for handler in getattr(node, "handlers", []):
            yield from at_import(handler.body)


def expect_none(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


def test_imports_point_one_way() -> None:
    problems = []
    for path in CODE:
        allowed = MAY_IMPORT[part_of(module_name(path))]
        for line, name in imports(path):
            part = part_of(name)
            if part.split(".")[0] in {"imagen", "unets", "train", "sample", "tests"} and part not in allowed:
                problems.append(f"{path}:{line} imports {name}; it may import {', '.join(sorted(allowed))}")
    expect_none(problems)


def test_the_core_uses_few_outside_packages() -> None:
    problems = []
    for path in CODE:
        allowed = OUTSIDE_FILES.get(path.as_posix(), OUTSIDE.get(part_of(module_name(path))))
        for line, name in imports(path):
            top = name.split(".")[0]
            ours = top in {"imagen", "unets"}
            if allowed is not None and not ours and top not in allowed | EXTRAS | set(sys.stdlib_module_names):
                problems.append(
                    f"{path}:{line} imports {name}; outside the standard library it may use {sorted(allowed)}"
                )
    expect_none(problems)


def test_extras_are_imported_where_they_are_used() -> None:
    problems = [
        f"{path}:{line} imports {name} at import time; it belongs to an extra of setup.cfg"
        for path in CODE
        for line, name in imports(path, at_import(tree(path).body))
        if name.split(".")[0] in EXTRAS
    ]
    expect_none(problems)


def test_saved_components_import_the_names_diffusers_looks_up() -> None:
    """diffusers loads a component only if the component's own module holds the name of its kind."""
    problems = []
    for path in CODE:
        held = {a.asname or a.name for n in tree(path).body if isinstance(n, ast.ImportFrom) for a in n.names}
        for cls in (node for node in tree(path).body if isinstance(node, ast.ClassDef)):
            bases = [ast.unparse(base).split(".")[-1] for base in cls.bases]
            network = any(base == "ModelMixin" or base.endswith("UNet") for base in bases)
            scheduler = any(base == "SchedulerMixin" or base.endswith("Scheduler") for base in bases)
            for needed, is_one in (("ModelMixin", network), ("SchedulerMixin", scheduler)):
                if is_one and needed not in held:
                    problems.append(f"{path}:{cls.lineno} {cls.name}: add `from diffusers import {needed}`")
    expect_none(problems)


def test_every_package_is_installed() -> None:
    """setuptools leaves out a folder that has no __init__.py."""
    missing = {
        path.parent for path in CODE if len(path.parts) > 1 and not (ROOT / path.parent / "__init__.py").exists()
    }
    expect_none([f"{folder}/__init__.py is missing" for folder in sorted(missing)])


def test_a_file_is_read_in_one_sitting_and_a_function_fits_a_screen() -> None:
    problems = []
    for path in EVERYTHING:
        lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        most = 350
        if lines > most:
            problems.append(f"{path} has {lines} lines; {most} are the limit")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                documented = len((ast.get_docstring(node, clean=False) or "").splitlines())
                size = (node.end_lineno or 0) - node.lineno + 1 - documented
                if size > 70:
                    problems.append(f"{path}:{node.lineno} {node.name} has {size} lines of code; 70 are the limit")
    expect_none(problems)


def test_nothing_unpickles() -> None:
    problems = []
    for path in CODE:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if (called == "torch.load" and not safe) or called in {"pickle.load", "pickle.loads", "eval", "exec"}:
                problems.append(f"{path}:{node.lineno} {ast.unparse(node)[:60]}: use safetensors or weights_only=True")
    expect_none(problems)


def test_public_names_have_docstrings() -> None:
    problems = []
    for path in CODE:
        if not ast.get_docstring(tree(path)) and (ROOT / path).read_text().strip():
            problems.append(f"{path} has no docstring")
        for node in tree(path).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                problems.append(f"{path}:{node.lineno} {node.name} has no docstring")
    expect_none(problems)


def test_every_command_line_option_is_documented() -> None:
    problems = []
    for path in CODE:
        for node in ast.walk(tree(path)):
            named = isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
            if isinstance(node, ast.Call) and named and getattr(node.func, "attr", "") == "add_argument":
                helped = [k for k in node.keywords if k.arg == "help" and ast.unparse(k.value) not in ("''", "None")]
                if not helped:
                    problems.append(f"{path}:{node.lineno} {ast.unparse(node)[:70]} has no help")
    expect_none(problems)


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


WATCH_IMPORT = """
import importlib, sys
root, extras, modules = sys.argv[1], set(sys.argv[2].split()), sys.argv[3:]
opened, network = [], []
code = (".py", ".pyc", ".so", ".pth", ".egg-link", ".zip")
def watch(event, args):
    path = args[0] if event == "open" and isinstance(args[0], str) else ""
    if path.startswith(root) and not path.startswith(sys.prefix) and not path.endswith(code):
        opened.append(path)
    if event in ("socket.connect", "socket.getaddrinfo"):
        network.append(str(args))
sys.addaudithook(watch)
for module in modules:
    importlib.import_module(module)
    libraries = sorted({"torch", "diffusers", "transformers"} & set(sys.modules))
    light = module == "imagen" or ".config" in module
    assert not light or not libraries, f"import {module} loaded {libraries}"
    assert not opened, f"import {module} opened {opened}"
    assert not network, f"import {module} used the network: {network}"
    heavy = sorted(extras & set(sys.modules))
    assert not heavy, f"import {module} loaded {heavy}"
assert not sys.modules["torch"].cuda.is_initialized(), "the GPU was touched"
"""


@pytest.mark.timeout(600)
def test_an_import_opens_no_file_no_network_and_no_gpu() -> None:
    """And `import imagen` is instant: the pipeline, and diffusers and transformers with it, comes when first named.
    So is reading a configuration, whose mistakes are told before anything heavy loads.
    """
    modules = ["imagen", "imagen.data.config", "imagen.training.config.sections", "imagen.diffusion", "unets"]
    modules += ["imagen.cascade.training.config.run"]
    modules += ["imagen.data.pictures", "imagen.data.tar", "imagen.data.hub", "imagen.data.table", "imagen.text"]

    command = [sys.executable, "-c", WATCH_IMPORT, str(ROOT / "x")[:-1], " ".join(EXTRAS), *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
