"""The contact sheets of the shapes world."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imagen.data import ShapesDataset
from imagen.data.shapes.sheet import main


def test_a_sheet_shows_the_samples(tmp_path) -> None:
    main(["--out", str(tmp_path / "sheet.png"), "--count", "1", "--side", "256", "--seed", "3"])
    shown = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    corner = np.argwhere((shown != 255).any(-1))[0]
    expected = (ShapesDataset(256, seed=3)[0].image.permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(shown[corner[0] : corner[0] + 256, corner[1] : corner[1] + 256] - expected).max() <= 1


@pytest.mark.parametrize("wrong", [["--count", "0"], ["--seed", "-1"], ["--split", "none"]])
def test_a_wrong_option_is_one_line(tmp_path, capsys, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "sheet.png"), *wrong])
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err.splitlines()[-1]
