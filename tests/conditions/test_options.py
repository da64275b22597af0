"""What a call passes of conditions at the command line: a picture as a person sees it, or one line of why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen.conditions.options import OPTIONS, check_conditions, picture


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, 3), (3, 2), (8, 1)])
def test_a_photograph_that_lies_on_its_side_is_read_upright(orientation: int, turns: int, tmp_path: Path) -> None:
    """EXIF's orientation: 6 is to be turned a quarter clockwise, 3 by half, 8 a quarter the other way."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "photograph.png"
    Image.fromarray(pixels).save(file, exif=exif)
    for read, flag in ((picture, "--image"), (OPTIONS["mask"].read, "--mask")):
        assert np.array_equal(np.asarray(read(flag, str(file))), np.rot90(pixels, turns))


@pytest.mark.parametrize(("opacity", "painted"), [(0, True), (127, True), (128, False), (255, False)])
def test_what_is_less_than_half_opaque_is_painted(opacity: int, painted: bool, tmp_path: Path) -> None:
    """One such pixel is enough; a picture without any is refused, as one that knows no transparency is."""
    pixels = np.full((4, 6, 4), 255, dtype=np.uint8)
    pixels[3, 5, 3] = opacity
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    read = OPTIONS["mask"].read
    if painted:
        assert np.array_equal(np.asarray(read("--mask", str(tmp_path / "picture.png"))), pixels)
    else:
        with pytest.raises(ValueError, match="--mask .*picture.png' has no transparent part"):
            read("--mask", str(tmp_path / "picture.png"))
    Image.fromarray(pixels[..., :3]).save(tmp_path / "opaque.png")
    with pytest.raises(ValueError, match="--mask .*opaque.png' has no transparent part"):
        read("--mask", str(tmp_path / "opaque.png"))


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), (b"no picture", "cannot identify")]
)
def test_what_is_no_picture_is_told_with_its_option(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"--mask .*picture.png' cannot be read as a picture: {reason}") as told:
        picture("--mask", str(file))
    assert "\n" not in str(told.value)


def test_a_class_is_one_of_every_network_that_runs() -> None:
    networks = [{"classes": {"label": 5}}, {"classes": {"label": 3}}, {"classes": None}]
    check_conditions({"label": "2"}, {}, networks)
    with pytest.raises(ValueError, match="label is 3; expected an integer from 0 to 2"):
        check_conditions({"label": "3"}, {}, networks)
    with pytest.raises(ValueError, match="label is given but no stage that runs was trained with one"):
        check_conditions({"label": "2"}, {}, networks[2:])
