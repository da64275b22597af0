"""The paper's sizes, and those of published networks of the family, counted on the meta device."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from unets import BaseUNet, EfficientUNet
from unets.count import count, main, network

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "configs" / "paper"


@pytest.mark.parametrize(
    ("name", "low", "high"), [("base64", 2.3e9, 2.5e9), ("sr256", 5.4e8, 5.7e8), ("sr1024", 5.4e8, 5.5e8)]
)
def test_paper_configurations_have_the_documented_size(name: str, low: float, high: float) -> None:
    unet = network(str(PAPER / f"{name}.yaml"))
    assert next(unet.parameters()).is_meta
    counts = count(unet)
    assert low < counts["total"] < high
    row = re.search(rf"^\| `configs/paper/{name}.yaml` (.+)$", (ROOT / "docs/parameters.md").read_text(), re.M)
    assert row is not None
    documented = [float(cell.split()[0].replace(",", "")) for cell in row[1].strip(" |").split(" | ")[:-1]]
    assert documented == [round(n / 1e6, 1) for n in counts.values()]


@pytest.mark.parametrize("name", ["base64", "sr256", "sr1024"])
def test_the_paper_configurations_write_out_the_defaults(name: str) -> None:
    unet: Any = network(str(PAPER / f"{name}.yaml"))
    with torch.device("meta"):
        default = BaseUNet() if name == "base64" else EfficientUNet(attention="cross" if "1024" in name else "self")
    for key, value in default.config.items():
        given = unet.config[key]
        if not key.startswith("_"):
            assert (tuple(given) if isinstance(given, list) else given) == value, key


def test_published_sizes_of_the_family() -> None:
    shared: dict[str, Any] = {"text_dim": 4096, "text_norm": "group", "pool_heads": 64, "out_channels": 6}
    with torch.device("meta"):
        xl = BaseUNet(model_channels=704, text_proj_dim=2816, time_embed_dim=2816, activation="gelu", **shared)
        large = BaseUNet(
            model_channels=160,
            channel_mult=(1, 2, 4, 6, 8),
            num_res_blocks=(2, 2, 3, 5, 5),
            attention_levels=(3, 4),
            lowres_channels=3,
            text_proj_dim=1280,
            time_embed_dim=1280,
            activation="gelu",
            residual_scale=0.7071,
            **shared,
        )
    assert count(xl)["total"] == 4_304_695_110
    assert count(large)["total"] == 1_243_277_190


def test_base_without_text_is_the_papers_two_billion() -> None:
    with torch.device("meta"):
        assert count(BaseUNet(text_dim=None))["total"] == pytest.approx(2.098e9, rel=1e-3)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("unet: {kind: Unet}\n")
    assert main([str(file)]) == 2
    assert "'Unet'; expected one of BaseUNet, EfficientUNet" in capsys.readouterr().err
    for content in ("", "unet:\n", "stage: {}\n"):
        file.write_text(content)
        assert main([str(file)]) == 2
        assert f"{file}: kind is None; expected one of BaseUNet" in capsys.readouterr().err
    assert main([str(tmp_path / "missing.yaml")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
    assert main([]) == 2


def test_the_command_prints_a_row_for_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for width in (128, 256):
        files.append(tmp_path / f"{width}.yaml")
        shape = "num_res_blocks: 1, channel_mult: [1, 2], attention_levels: [1], text_dim: 512"
        files[-1].write_text(f"unet: {{kind: BaseUNet, model_channels: {width}, {shape}}}\ntrain: {{}}\n")
    assert main([str(file) for file in files]) == 0
    header, line, *rows = capsys.readouterr().out.splitlines()
    assert header.split("|")[-2].strip() == "total"
    assert line.count("|") == header.count("|") == rows[0].count("|")
    for file, row in zip(files, rows, strict=True):
        counts = count(network(str(file)))
        assert counts["total"] == sum(counts.values()) - counts["total"]
        name, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        assert name == f"`{file}`"
        assert cells == [f"{round(n / 1e5) / 10:,.1f} M" for n in counts.values()]
