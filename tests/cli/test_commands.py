"""The commands: one list, which setup.cfg installs; what it names is there and starts."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imagen.cli import commands
from imagen.cli.commands import COMMANDS, main, typed
from tests.source import ROOT


def entry_points() -> dict[str, str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return {name.strip(): target.strip() for name, _, target in (line.partition("=") for line in lines if line)}


def test_the_listed_commands_are_those_that_are_installed(capsys: Any) -> None:
    assert entry_points() == {f"imagen-{name}": command.target for name, command in COMMANDS.items()}
    assert len(COMMANDS) >= 9
    assert main([]) == 0
    told = capsys.readouterr().out
    for line, (name, command) in zip(told.splitlines(), COMMANDS.items(), strict=True):
        assert line.split()[:4] == [f"imagen-{name}", "python", "-m", command.module]
        assert line.endswith(f" {command.told}")
        assert len(line) <= 120
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_names_is_there(name: str) -> None:
    """And its module form is a script: a package with a ``__main__``, or a module that guards a call."""
    module, _, function = COMMANDS[name].target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    spec = importlib.util.find_spec(COMMANDS[name].module)
    assert spec is not None
    assert spec.origin is not None
    script = Path(spec.origin)
    script = script.with_name("__main__.py") if script.name == "__init__.py" else script
    assert 'if __name__ == "__main__":' in script.read_text(encoding="utf-8")


def test_listing_and_refusing_load_nothing_heavy() -> None:
    code = (
        "import sys; from imagen.cli.commands import main; codes = [main(['--help']), main(['smaple', '--x'])]; "
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'yaml'} & set(sys.modules); print(codes, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 2] set()"
    (line,) = done.stderr.splitlines()
    assert line == f"imagen: error: there is no command 'smaple'; the commands are {', '.join(COMMANDS)}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_through_the_installed_function(name: str, monkeypatch: Any, capsys: Any) -> None:
    """As the script that pip writes calls it: no arguments, the words in sys.argv, and no file of the checkout."""
    monkeypatch.setattr(sys, "argv", [f"imagen-{name}", "--help"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    module, _, function = entry_points()[f"imagen-{name}"].partition(":")
    try:
        code = getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        code = end.code
    assert not code
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["count", "imagen-count"])
def test_a_name_starts_its_command_with_the_words_behind_it(name: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m imagen"])
    assert main([name, str(ROOT / "configs/shapes/base64.yaml")]) == 0
    assert "configs/shapes/base64.yaml" in capsys.readouterr().out
    assert main([name, "nowhere.yaml"]) == 2
    assert sys.argv == ["imagen-count", "nowhere.yaml"]


def test_a_command_is_named_as_it_can_be_typed(tmp_path: Path, monkeypatch: Any) -> None:
    """In a wheel there is no sample.py; what a command says is to be typed next must be there."""
    assert [typed(name) for name in ("sample", "train")] == ["python sample.py", "python train.py"]
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "imagen" / "cli" / "commands.py"))
    assert [typed(name) for name in ("sample", "train")] == ["imagen-sample", "imagen-train"]


@pytest.mark.parametrize("name", ["sample", "train"])
def test_without_a_checkout_help_names_the_installed_command(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    module, shown = importlib.import_module(f"imagen.cli.{name}"), list[str]()
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "imagen" / "cli" / "commands.py"))
    monkeypatch.setattr("argparse.ArgumentParser._print_message", lambda _, message, *__: shown.append(message))
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert "".join(shown).startswith(f"usage: imagen-{name} ")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_behind_a_name_is_that_of_its_command(name: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m imagen"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    try:
        code = main([name, "--help"])
    except SystemExit as end:
        code = end.code
    assert not code
    assert capsys.readouterr().out.lower().startswith("usage: ")
