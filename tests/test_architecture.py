"""The shape of the house: who imports whom, what an import costs, how long a file and how wide a function may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.count_lines import MOST_ARGUMENTS, arguments
from tests.source import CODE, EVERYTHING, ROOT, expect_none, functions, imports, module_name, tree

# Part of the house -> the parts it may import. A part is the longest prefix named here. Nobody imports upwards.
BASE = {"imagen.captions", "imagen.checks", "imagen.disk", "imagen.errors", "imagen.memory", "imagen.modes"}
ROOMS = {"imagen.diffusion", "imagen.text", "imagen.data"}
CORE = {"unets", *ROOMS, *BASE}
LOWER = {"imagen.conditions", "imagen.stages", *CORE}
BELOW_PIPELINE = {"imagen.cascade", *LOWER}
MAY_IMPORT = {
    "unets": {"unets"},
    **{part: {part, *BASE} for part in ROOMS},
    **{part: set() for part in BASE},
    "imagen.scores": {"imagen.scores", *BASE},
    "imagen.conditions": {"imagen.conditions", *CORE},
    "imagen.stages": {"imagen.stages", *CORE},
    "imagen.cascade": {"imagen.cascade", *LOWER},
    "imagen.pipeline": {"imagen.pipeline", *BELOW_PIPELINE},
    "imagen.training": {"imagen.training", "imagen.data", *BASE},
    "imagen.cascade.training": {
        *("imagen.cascade.training", "imagen.training", "imagen.scores", "imagen.pipeline"),
        *BELOW_PIPELINE,
    },
    "imagen.clip": {"imagen.clip", "imagen.training", "imagen.data", "imagen.scores", *BASE},
    "imagen.evaluation": {"imagen.evaluation", "imagen.clip", "imagen.scores", "imagen.pipeline", *BELOW_PIPELINE},
    "imagen.convert": {"imagen.convert", "imagen.pipeline", *BELOW_PIPELINE},
    "imagen": {"imagen", "imagen.memory", "imagen.pipeline"},
}
# What people start: nothing but a call of imagen.cli, and nobody imports it.
ENTRIES = ("train", "sample", "imagen.text.cache.__main__", "imagen.training.compose", "imagen.__main__")
MAY_IMPORT["imagen.cli"] = {"imagen.cli", *MAY_IMPORT}
MAY_IMPORT.update({entry: {"imagen.cli"} for entry in ENTRIES})
# Outside packages a part may use beside the standard library and, in functions, the extras; others are free in this.
OUTSIDE = {"imagen.diffusion": {"torch"}, "unets": {"torch", "diffusers"}, "train": set(), "sample": set()}
OUTSIDE_FILES = {
    "imagen/diffusion/sampling.py": {"torch", "diffusers"},
    "imagen/diffusion/unipc.py": {"torch", "diffusers"},
    "unets/count.py": {"torch", "diffusers", "yaml"},  # a script: reads configs
}
# Packages of the extras (setup.cfg): imported only inside the function that needs them.
EXTRAS = {
    "matplotlib",
    "scipy",
    "torchmetrics",
    "timm",
    "tensorboard",
    "peft",
    "datasets",
    "pyarrow",
    "xformers",
    "cv2",
    "bitsandbytes",
}


def part_of(module: str) -> str:
    """The longest entry of MAY_IMPORT that `module` lies in, or its top-level package."""
    found = [part for part in MAY_IMPORT if module == part or module.startswith(part + ".")]
    return max(found, key=len, default=module.split(".")[0])


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


def test_the_code_is_where_these_tests_look() -> None:
    found = Counter("/".join(path.parts[: -1 if len(path.parts) < 3 else 2]) for path in EVERYTHING)
    least = {
        "imagen/cascade": 28,
        "imagen/cli": 10,
        "imagen/conditions": 7,
        "imagen/convert": 6,
        "imagen/data": 20,
        "imagen/diffusion": 14,
        "imagen/evaluation": 12,
        "imagen/stages": 3,
        "imagen/text": 8,
        "imagen/training": 16,
        "unets": 13,
        "benchmarks": 3,
        "benchmarks/speed": 12,
    }
    few = [f"{found[folder]} files in {folder}, {n} expected" for folder, n in least.items() if found[folder] < n]
    expect_none(few)
    assert sum(path.parts[0] == "tests" for path in EVERYTHING) >= 110


def test_every_part_has_a_line_of_its_own_and_every_line_a_part() -> None:
    """What lies in imagen/ would else count as `imagen` itself, and a name that moved would allow what nobody has."""
    children = {f"imagen.{path.stem}" for path in (ROOT / "imagen").glob("*.py") if path.stem != "__init__"}
    children |= {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("imagen/*/__init__.py")}
    without = sorted(part for part in children if part not in MAY_IMPORT)
    expect_none([f"{part} has no line in MAY_IMPORT" for part in without], len(children), 13)
    modules = {module_name(path) for path in CODE}
    named = {*MAY_IMPORT, *OUTSIDE, *(part for allowed in MAY_IMPORT.values() for part in allowed)}
    expect_none([f"{part} is named here and is nowhere" for part in sorted(named - modules)])
    expect_none([f"{path} is named here and is nowhere" for path in OUTSIDE_FILES if Path(path) not in CODE])
    expect_none([f"{part} may be imported and has no line" for part in sorted(named - MAY_IMPORT.keys())])


def test_the_lines_themselves_point_one_way() -> None:
    """No part may import, over whatever others, one that may import it."""
    reach = {part: allowed - {part} for part, allowed in MAY_IMPORT.items()}
    for _ in reach:
        reach = {part: far.union(*(reach[other] for other in far)) for part, far in reach.items()}
    expect_none([f"{part} may import what imports it" for part, far in reach.items() if part in far], len(reach), 20)


def test_the_layout_names_every_part() -> None:
    text = (ROOT / "docs/layout.md").read_text(encoding="utf-8")
    parts = [part for part in MAY_IMPORT if part != "imagen" and part not in ENTRIES]
    expect_none([f"docs/layout.md does not say what {part} may import" for part in parts if f"`{part}`" not in text])


def test_imports_point_one_way() -> None:
    problems, ours = [], 0
    for path in CODE:
        allowed = MAY_IMPORT[part_of(module_name(path))]
        for line, name in imports(path):
            part = part_of(name)
            if part.split(".")[0] in {"imagen", "unets", "train", "sample", "tests"}:
                ours += 1
                if part not in allowed:
                    problems.append(f"{path}:{line} imports {name}; it may import {', '.join(sorted(allowed))}")
    expect_none(problems, ours, 800)


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
    problems, kinds = [], Counter[str]()
    for path in CODE:
        held = {a.asname or a.name for n in tree(path).body if isinstance(n, ast.ImportFrom) for a in n.names}
        for cls in (node for node in tree(path).body if isinstance(node, ast.ClassDef)):
            bases = [ast.unparse(base).split(".")[-1] for base in cls.bases]
            network = any(base == "ModelMixin" or base.endswith("UNet") for base in bases)
            scheduler = any(base == "SchedulerMixin" or base.endswith("Scheduler") for base in bases)
            for needed, is_one in (("ModelMixin", network), ("SchedulerMixin", scheduler)):
                kinds[needed] += is_one
                if is_one and needed not in held:
                    problems.append(f"{path}:{cls.lineno} {cls.name}: add `from diffusers import {needed}`")
    expect_none(problems, kinds["ModelMixin"], 3)
    expect_none(problems, kinds["SchedulerMixin"], 2)


def test_every_package_is_installed() -> None:
    """setuptools leaves out a folder that has no __init__.py."""
    missing = {
        path.parent for path in CODE if len(path.parts) > 1 and not (ROOT / path.parent / "__init__.py").exists()
    }
    expect_none([f"{folder}/__init__.py is missing" for folder in sorted(missing)])


def test_a_file_is_read_in_one_sitting_and_a_function_fits_a_screen() -> None:
    problems, seen = [], 0
    for path in EVERYTHING:
        lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        most = 350 if path.parts[0] == "tests" else 330
        if lines > most:
            problems.append(f"{path} has {lines} lines; {most} are the limit")
        for node, spelled_out in functions(path):
            seen += 1
            documented = len((ast.get_docstring(node, clean=False) or "").splitlines())
            size, most = (node.end_lineno or 0) - node.lineno + 1 - documented, 70 if spelled_out else 60
            if size > most:
                problems.append(f"{path}:{node.lineno} {node.name} has {size} lines of code; {most} are the limit")
    expect_none(problems, seen, 2000)


def test_a_function_takes_no_more_than_eight_arguments() -> None:
    wide = [
        (f"{path}:{node.lineno} {node.name} takes {arguments(node)} arguments; {MOST_ARGUMENTS} are the limit", right)
        for path in EVERYTHING
        for node, right in functions(path)
        if arguments(node) > MOST_ARGUMENTS
    ]
    expect_none([told for told, right in wide if not right], len(wide), 8)


def test_nothing_unpickles() -> None:
    problems, loads = [], 0
    for path in CODE:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            loads += called == "torch.load"
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if (called == "torch.load" and not safe) or called in {"pickle.load", "pickle.loads", "eval", "exec"}:
                problems.append(f"{path}:{node.lineno} {ast.unparse(node)[:60]}: use safetensors or weights_only=True")
    expect_none(problems, loads, 2)


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
