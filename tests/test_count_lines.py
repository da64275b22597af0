"""What counts as a line of code, as an argument, as `Any`; and what a commit touched, in a small repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import count_lines

SOURCE = '''"""A module."""

from typing import Any  # 1

# a comment


class A:  # 2
    """A class,
    documented."""

    x: int = 1  # 3
    """an attribute's docstring"""

    def f(self, a, b=2, *c, d, **e) -> Any:  # 4
        """Docs."""
        return """not
        a
        docstring"""  # 5 to 7

    @staticmethod  # 8
    def g() -> "dict[str, typing.Any]": ...  # 9


def h(x: typing.Any) -> None:  # 10
    pass  # 11
'''


def test_what_is_code_and_what_is_not() -> None:
    counted = count_lines.count("a.py", SOURCE)
    assert counted.lines == 11
    assert counted.anys == 2, "its import is no use of it, nor is a word in a text"
    assert counted.functions == ((2, 1, "a.py:25 h"), (4, 5, "a.py:15 f"), (1, 0, "a.py:22 g"))


def git(folder: Path, *arguments: str) -> None:
    """Run git there, as somebody."""
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits: the first adds a package, the second moves, changes, adds and removes files."""

    git(tmp_path, "init", "-q")
    (tmp_path / "imagen" / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "imagen" / "a.py").write_text(SOURCE)
    (tmp_path / "imagen" / "b.py").write_text("x = 1\ny = 2\n")
    (tmp_path / "imagen" / "c.py").write_text("z = 1\n")
    (tmp_path / "other.py").write_text("a = 1\n" * 50)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    (tmp_path / "imagen" / "a.py").rename(tmp_path / "imagen" / "deep" / "a.py")
    (tmp_path / "imagen" / "deep" / "deeper" / "d.py").write_text("def f(a, b, c, d, e, f, g, h, i):\n    pass\n")
    (tmp_path / "imagen" / "b.py").write_text("x = 1\n")
    (tmp_path / "imagen" / "c.py").unlink()
    (tmp_path / "tests" / "test_a.py").write_text("x = 1\n")
    (tmp_path / "README.md").write_text("x\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "second")
    return tmp_path


def test_a_table_by_folder_at_two_commits(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert count_lines.main(["HEAD~1", "HEAD"], root=repository) == 0
    printed = capsys.readouterr().out
    rows = {line[:48].strip(): line[48:].split() for line in printed.split("\n\n")[0].splitlines()[1:]}
    assert rows["imagen"] == ["14", "1"]
    assert rows["imagen/deep"] == ["0", "13"]
    assert rows["all"] == ["14", "14"], "other.py is not counted"
    assert rows["files"] == ["3", "3"]
    assert rows["functions with more than 8 arguments"] == ["0", "1"]
    assert "     9  imagen/deep/deeper/d.py:1 f" in printed


def test_what_a_commit_touched(repository: Path) -> None:
    found = count_lines.touched("HEAD", repository)
    assert found["changed"] == ["imagen/b.py", "imagen/a.py -> imagen/deep/a.py"]
    assert found["new"] == ["imagen/deep/deeper/d.py"]
    assert found["removed"] == ["imagen/c.py"]
    assert len(count_lines.touched("HEAD~1", repository)["new"]) == 4, "the first commit has no parent"


def test_how_long_it_would_be_without_what_a_commit_added(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, source in (("imagen/e.py", "x = 1\n\n\n# no code\ny = 2\nz = 3\n"), ("other.py", "a = 1\n")):
        (repository / name).write_text(source)
        git(repository, "add", "-A")
        git(repository, "commit", "-qm", f"change {name}")
    assert count_lines.main(["HEAD~3", "HEAD", "--added", "HEAD~2", "HEAD~1", "HEAD"], root=repository) == 0
    told = capsys.readouterr().out.rpartition("\n\n")[2].splitlines()
    assert told[0] == "lines of code that commits added"
    assert [line.split()[0] for line in told[1:]] == ["+0", "+3", "+0", "+3"]
    assert [line.split()[-1] for line in told[1:4]] == ["second", "imagen/e.py", "other.py"]
    assert told[4].endswith("HEAD~3 has 14 lines, HEAD 17, without them 14")


def test_no_such_commit_is_one_line(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["nothing"], ["--touched", "nothing"], ["HEAD", "--added", "nothing"]):
        assert count_lines.main(words, root=repository) == 2
        error = capsys.readouterr().err
        assert error.startswith("count_lines: error: ")
        assert error.count("\n") == 1
