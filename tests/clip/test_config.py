"""The shipped configurations of CLIPs."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagen.cli.clip import next_command, read
from imagen.errors import ConfigError
from imagen.training.config.parsing import to_yaml

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").rglob("clip64.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_they_are_read_and_written_alike(path: Path, tmp_path: Path) -> None:
    config = read(["--config", str(path)])
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert read(["--config", str(tmp_path / "again.yaml")]) == config
    assert f"{config.run_dir}/model" in next_command(config)


def test_there_are_two() -> None:
    assert [path.parent.name for path in CONFIGS] == ["shapes", "small"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--clip.image.widht", "clip.image.width"),
        ("--clip.temperature", "unknown key 'clip.temperature'"),
        ("--unet.kind", "unknown key 'unet.kind'"),
    ],
)
def test_a_key_that_there_is_not_is_told_with_the_nearest(word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(["--run_dir", "x", word, "8"])
