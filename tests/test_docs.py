"""What the documentation points at exists: links, headings, paths, commands and their options."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from imagen.cascade.training.config.run import RunConfig
from imagen.stages.spec import FORMAT_VERSION
from imagen.training.config.parsing import known_keys

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "pretrained/*/README.md", "configs/**/*.md")
    for path in ROOT.glob(pattern)
)
SOURCES = [*PAGES, *sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/**/*.yaml"))]
# Names in running text that look like paths of this repository; `runs/`, `samples/` and the like are made by the user.
PATH = re.compile(r"`((?:imagen|unets|configs|docs|tests|benchmarks|pretrained|scripts|\.ci)/[\w./\-]*)`")

# A file and what is defined in it: `imagen/diffusion/loop.py` `sample_loop`.
DEFINED = re.compile(r"`((?:imagen|unets)/[\w./]+\.py)`\s+`([\w.]+)`")


def text(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def outside_fences(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", text(page), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors a Markdown viewer makes of the headings of `page`."""
    headings = re.findall(r"^#+ +(.+?) *$", outside_fences(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    problems = []
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", outside_fences(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page.parent / name).resolve() if name else ROOT / page
        if not file.exists():
            problems.append(f"{target}: there is no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.relative_to(ROOT)):
            problems.append(
                f"{target}: that page has no such heading; it has {sorted(anchors(file.relative_to(ROOT)))}"
            )
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_paths_in_the_text_exist(page: Path) -> None:
    missing = [name for name in PATH.findall(outside_fences(page)) if not (ROOT / name).exists()]
    assert not missing, f"{page} names {missing}"


def defines(file: Path, name: str) -> bool:
    """Whether a file defines a name: a function, a class, or Class.method; nothing that it imports."""
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [
            node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and node.name == part
        ]
        if not found:
            return False
        body = found[0].body
    return True


def test_the_way_through_the_code_exists() -> None:
    """Where a page names a file and a definition in it, it is there, and not only imported there."""
    pairs = [(page, file, name) for page in PAGES for file, name in DEFINED.findall(outside_fences(page))]
    assert len(pairs) >= 30, f"only {len(pairs)} definitions are named with their files"
    missing = [f"{page}: {file} defines no {name}" for page, file, name in pairs if not defines(Path(file), name)]
    assert not missing, "\n".join(missing)


def test_the_pages_are_where_these_tests_look() -> None:
    """So that a folder that moves does not leave these tests without a page, and green."""
    found = {
        "pages": (len(PAGES), 15),
        "configurations": (len(SOURCES) - len(PAGES), 13),
        "commands": (len(commands()), 60),
        "paths": (sum(len(PATH.findall(outside_fences(page))) for page in PAGES), 100),
    }
    few = [f"{number} {what} found, {least} expected" for what, (number, least) in found.items() if number < least]
    assert not few, "\n".join(few)
    assert {Path("README.md"), Path("docs/layout.md"), Path("pretrained/shapes/README.md")} <= {*PAGES}


def test_keys_modules_and_the_format_are_those_of_the_code() -> None:
    """`train.init_from`, `imagen.data.make_source`: configuration keys and dotted names, and the stored format."""
    known = known_keys(RunConfig)
    sections = "|".join({key.partition(".")[0] for key in known if "." in key})
    words = [(page, word) for page in SOURCES for word in re.findall(r"`-{0,2}([a-z]\w*(?:\.\w+)+)[`:( ]", text(page))]
    keys = [(page, word) for page, word in words if re.fullmatch(rf"(?:{sections})(?:\.(?!py$)[a-z]\w*)+", word)]
    names = [(page, word) for page, word in words if word.startswith(("imagen.", "unets."))]
    assert len(keys) >= 60, f"only {len(keys)} keys found"
    assert len(names) >= 15, f"only {len(names)} names of modules found"
    free = ("unet.", "data.fields.")
    problems = [f"{page}: no key {key}" for page, key in keys if key not in known and not key.startswith(free)]
    for page, name in names:
        module, _, member = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            if importlib.util.find_spec(module) is None or not hasattr(importlib.import_module(module), member):
                problems.append(f"{page}: there is no {name}")
    assert not problems, "\n".join(problems)
    assert f"- `format_version`: {FORMAT_VERSION}." in text(Path("docs/sampling.md"))


def commands() -> list[tuple[Path, str]]:
    """(page, command line) of every line of a shell block, and of every `$ ...` free command in a config's head."""
    found = []
    for page in SOURCES:
        if page.suffix == ".yaml":
            lines = re.findall(r"^# +((?:accelerate|python|make) .+)$", text(page), flags=re.M)
        else:
            blocks = re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", text(page), flags=re.M | re.S)
            lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        found += [(page, line.strip()) for line in lines if line.strip() and not line.strip().startswith("#")]
    return found


@cache
def help_of(program: tuple[str, ...]) -> str:
    command = [sys.executable, *program, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(program)} --help: {done.stderr[-500:]}"
    return done.stdout


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", text(Path("Makefile")), flags=re.M))


def problems_of(line: str) -> list[str]:
    """What is wrong with one documented command: unknown targets, modules, files or options."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if not words:
        return []
    if words[0] == "make":
        targets = [w for w in words[1:] if "=" not in w and not w.startswith("-")]
        return [f"make has no target {t}" for t in targets if t not in make_targets()]
    program: tuple[str, ...] = ()
    if Path(words[0]).name == "accelerate" and "train.py" in words:
        program, words = ("train.py",), words[words.index("train.py") + 1 :]
    elif Path(words[0]).name in {"python", "python3"} and len(words) > 1:
        if words[1] == "-m":
            if not words[2].startswith("imagen"):
                return [] if importlib.util.find_spec(words[2].split(".")[0]) else [f"no module {words[2]}"]
            if importlib.util.find_spec(words[2]) is None:
                return [f"there is no module {words[2]}"]
            program, words = ("-m", words[2]), words[3:]
            if words and re.fullmatch(r"[a-z][a-z-]*", words[0]) and f"{words[0]}" in help_of(program):
                program, words = (*program, words[0]), words[1:]
        elif (ROOT / words[1]).suffix == ".py":
            if not (ROOT / words[1]).exists():
                return [f"there is no file {words[1]}"]
            program, words = (words[1],), words[2:]
    if not program:
        return []
    known = help_of(program)
    options = [w.split("=")[0] for w in words if w.startswith("--")]
    problems = [f"{' '.join(program)} has no option {o}" for o in options if not re.search(rf"{o}\b", known)]
    files = [w for w in words if re.match(r"(configs|docs|pretrained|benchmarks)/", w)]
    return problems + [f"there is no file {f}" for f in files if not (ROOT / f).exists()]


@pytest.mark.parametrize(("page", "line"), commands(), ids=str)
def test_documented_commands_exist(page: Path, line: str) -> None:
    shell = subprocess.run(["bash", "-n"], input=line, text=True, capture_output=True, check=False)
    assert shell.returncode == 0, f"{page}: not a shell command: {line}\n{shell.stderr}"
    problems = problems_of(line)
    assert not problems, f"{page}: {line}\n" + "\n".join(problems)


def test_python_blocks_of_the_documentation_compile() -> None:
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", text(page), flags=re.M | re.S):
            assert compile(block, str(page), "exec")
