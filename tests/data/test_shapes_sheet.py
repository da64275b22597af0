"""The contact sheets of the shapes world."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imagen.data import ShapesDataset
from imagen.data.shapes.sheet import main


def test_a_sheet_shows_the_samples_in_the_colors_asked_for(tmp_path) -> None:
    for share in ("0", "1"):
        out = tmp_path / f"{share}.png"
        main(["--out", str(out), "--count", "1", "--side", "256", "--unnamed-colors", share])
        shown = np.asarray(Image.open(out)).astype(int)
        corner = np.argwhere((shown != 255).any(-1))[0]
        image = ShapesDataset(256, lowres_size=64, unnamed_colors=float(share))[0].image
        expected = (image.permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(shown[corner[0] : corner[0] + 256, corner[1] : corner[1] + 256] - expected).max() <= 1


@pytest.mark.parametrize("wrong", [["--unnamed-colors", "2"], ["--unnamed-colors", "1", "--stages"], ["--count", "0"]])
def test_a_wrong_option_is_one_line(tmp_path, capsys, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "sheet.png"), *wrong])
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err
