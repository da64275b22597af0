"""What travels to a bare machine: our requirements that are not there, and no more than it is sent."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed import pack


def wheel(folder: Path, name: str, size: int = 10) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-py3-none-any.whl"
    path.write_bytes(b"x" * size)
    return path


def test_what_is_there_stays_behind_and_what_is_missing_brings_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {
        "diffusers": ["importlib_metadata", "torch", 'jax; extra == "flax"'],
        "importlib-metadata": ['zipp>=3; python_version < "3.20"', 'old; python_version < "3.12"'],
        "jsonargparse": ['docstring-parser; extra == "signatures"', 'reconplogger; extra == "reconplogger"'],
        "zipp": None,
        "docstring-parser": [],
    }
    monkeypatch.setattr(pack.metadata, "requires", lambda name: needs[name])
    monkeypatch.setattr(pack.metadata, "version", lambda name: {"zipp": "4.1"}.get(name, "1.0"))
    found = pack.missing(["torch >=2.11", "diffusers >=0.42", "jsonargparse[signatures] >=4.40"], {"torch"})
    assert set(found) == {*needs}
    assert found["zipp"] == "4.1"


def test_our_own_requirements_are_read_and_only_names_are_there() -> None:
    assert any(line.startswith("diffusers") for line in pack.ours())
    assert {"torch", "transformers", "accelerate"} <= pack.there()
    assert not {"diffusers", "jsonargparse", "imagen-pytorch"} & pack.there()
    assert all(name == pack.canonicalize_name(name) for name in (*pack.there(), *pack.PEERS))


def test_only_what_is_not_there_in_its_version_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(command: list[str], check: bool) -> None:
        asked.append(command)
        wheel(tmp_path, "new_one-2.0")

    monkeypatch.setattr(subprocess, "run", download)
    kept, _ = wheel(tmp_path, "old_one-1.0"), wheel(tmp_path, "new_one-1.0")
    found = pack.fetch({"old-one": "1.0", "new-one": "2.0"}, tmp_path)
    assert [path.name for path in found] == ["new_one-2.0-py3-none-any.whl", kept.name]
    assert sorted(tmp_path.iterdir()) == sorted(found), "two versions of one would stop the installation"
    assert asked[0][-1] == "new-one==2.0"
    assert "old-one==1.0" not in asked[0]
    assert asked[0][asked[0].index("--python-version") + 1] == "3.12"
    pack.fetch({"old-one": "1.0", "new-one": "2.0"}, tmp_path)
    assert len(asked) == 1


@pytest.mark.parametrize(("limit", "code"), [("3.1", 0), ("2.9", 1)])
def test_more_than_a_machine_is_sent_is_an_error_that_names_the_largest(
    limit: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [wheel(tmp_path, "small-1.0", pack.MIB // 2), wheel(tmp_path, "large-1.0", pack.MIB // 2 + 1)]
    monkeypatch.setattr(pack, "fetch", lambda *_: paths)
    monkeypatch.setattr(pack, "tree", lambda: 2 * pack.MIB)
    assert pack.main(["--limit", limit]) == code
    told = capsys.readouterr()
    assert f"   3.00 MiB  in all, of {limit}" in told.out
    assert ("gpu-pack: error: 0.10 MiB too many; the largest wheel is large-1.0" in told.err) is (code == 1)


def test_the_tree_is_what_git_would_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "ROOT", tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name, text in {".gitignore": "/wheels/\n", "new.txt": "12345"}.items():
        (tmp_path / name).write_text(text)
    wheel(tmp_path / "wheels", "large-1.0", 1000)
    assert pack.tree() == len("/wheels/\n") + 5


def test_the_peers_can_be_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(pack, "fetch", lambda packages, _: asked.append(packages) or [])
    monkeypatch.setattr(pack, "tree", lambda: 0)
    assert pack.main([]) == pack.main(["--without-peers"]) == 0
    assert {*asked[0]} - {*asked[1]} == {name for name in pack.PEERS if name not in asked[1]}
    assert "imagen-pytorch" in asked[0]
    assert "diffusers" in asked[1]
