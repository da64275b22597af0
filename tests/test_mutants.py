"""The stored mutations can be applied, and the runner tells a caught one from a surviving, stale or broken one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.mutants import run

ROOT = Path(__file__).resolve().parents[1]


def test_every_stored_mutation_can_be_applied() -> None:
    mutations = run.load(ROOT / "tests" / "mutants")
    stale = [f"{m.source}: {problem}" for m in mutations if (problem := m.stale(ROOT))]
    assert not stale, "\n".join(stale)


def test_the_tests_that_they_name_are_there() -> None:
    named = {test for mutation in run.load(ROOT / "tests" / "mutants") for test in mutation.tests}
    for place, _, rest in (test.partition("::") for test in sorted(named)):
        assert (ROOT / place).exists(), place
        name = rest.split("::")[-1].partition("[")[0]
        assert f"def {name}(" in (ROOT / place).read_text() if name else True, f"{place}::{name}"


def test_there_are_hundreds_and_none_twice() -> None:
    mutations = run.load(ROOT / "tests" / "mutants")
    keys = {(m.file, m.find, m.replace) for m in mutations}
    assert len(keys) == len(mutations)
    assert len(keys) >= 400


def tiny_tree(root: Path, mutations: list[dict[str, str]]) -> None:
    (root / "tests" / "mutants").mkdir(parents=True)
    (root / "double.py").write_text("def double(x: int) -> int:\n    return 2 * x  # twice\n")
    (root / "tests" / "test_double.py").write_text(
        "from double import double\n\n\ndef test_double():\n    assert double(3) == 6\n"
    )
    (root / "tests" / "mutants" / "all.yaml").write_text(yaml.safe_dump(mutations))
    subprocess.run(["git", "init", "-q", str(root)], check=True)


def mutation(find: str, replace: str) -> dict[str, str]:
    return {"file": "double.py", "find": find, "replace": replace, "tests": "tests/test_double.py"}


def test_the_runner_tells_the_four_verdicts_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        mutation("2 * x", "3 * x"),
        mutation("# twice", "# thrice"),
        mutation("4 * x", "5 * x"),
        mutation("return 2", "return return"),
    ]
    tiny_tree(tmp_path, cases)
    before = (tmp_path / "double.py").read_text()

    assert run.main(["--workers", "1"], root=tmp_path) == 1

    printed = capsys.readouterr().out
    for verdict in ("caught", "SURVIVED", "STALE", "BROKEN"):
        assert verdict in printed
    assert printed.splitlines()[-1] == "1 passed, 3 failed"
    assert (tmp_path / "double.py").read_text() == before, "the working tree was changed"


def test_tests_that_fail_without_a_mutation_are_an_error(tmp_path: Path) -> None:
    tiny_tree(tmp_path, [mutation("2 * x", "3 * x")])
    (tmp_path / "tests" / "test_double.py").write_text("def test_double():\n    assert False\n")
    with pytest.raises(SystemExit, match="unchanged tree"):
        run.main([], root=tmp_path)


def test_a_malformed_mutation_names_its_place(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("- {file: a.py, fnd: x, replace: y, tests: t}\n")
    with pytest.raises(ValueError, match="bad.yaml, entry 1"):
        run.load(tmp_path)
    (tmp_path / "bad.yaml").write_text("- {file: a.py, find: x, replace: y, find: z, tests: t}\n")
    with pytest.raises(ValueError, match="bad.yaml: 'find' stands twice in the entry at line 1"):
        run.load(tmp_path)
