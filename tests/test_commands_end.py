"""Every command ends in a line: odd files, files that are not there, a reader that has gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imagen.data.shapes.sheet import main as sheet
from tests.source import ROOT
from unets.count import main as count

#: Of a command whose output waits in a buffer, as it does by default.
BUFFERED = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "PYTHONSAFEPATH")}
BUFFERED["PYTHONPATH"] = str(ROOT)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("- a\n- b\n", "expected a mapping unet:"),
        ("unet: [1]\n", "expected a mapping unet:"),
        ("5", "expected a mapping unet:"),
        ("unet: {kind: BaseUNet, no_such: 1}\n", "no_such"),
        ("unet: {kind: BaseUNet, model_channels: many}\n", "unet: "),
        ("unet: {kind: [BaseUNet]}\n", "'list'"),
        ("a: [\n", "line 2"),
        (None, "No such file"),
    ],
)
def test_counting_an_odd_file_is_a_line_that_names_it(
    tmp_path: Path, capsys: Any, content: str | None, told: str
) -> None:
    path = tmp_path / "odd.yaml"
    if content is not None:
        path.write_text(content)
    assert count([str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unets.count: error: ")
    assert str(path) in line
    assert told in line


@pytest.mark.parametrize("name", ["sheet.nothing", "sheet", "file/sheet.png"])
def test_a_sheet_that_cannot_be_written_is_a_line(tmp_path: Path, capsys: Any, name: str) -> None:
    (tmp_path / "file").write_text("")
    code = sheet(["--out", str(tmp_path / name), "--count", "1", "--side", "16"])
    assert code == (1 if "/" in name else 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imagen.data.shapes.sheet: error: ")


@pytest.mark.parametrize(
    "words", [["unets.count", "configs/shapes/base64.yaml"], ["imagen.data.shapes.sheet", "--count", "1", "--out"]]
)
def test_a_reader_that_has_gone_is_a_line(tmp_path: Path, words: list[str]) -> None:
    command = [sys.executable, "-m", *words, *([str(tmp_path / "a.png")] if words[-1] == "--out" else [])]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=BUFFERED
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, error = process.communicate()
    assert process.returncode == 1
    (line,) = error.splitlines()
    assert line.startswith(f"{words[0]}: error: ")
