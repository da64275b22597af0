"""The detector on pictures drawn here and on the renderer's: what is there is found, what is wrong is called wrong."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from imagen.data.shapes import language
from imagen.data.shapes.language import Facts, Thing, parse, sample_facts
from imagen.data.shapes.layout import place
from imagen.data.shapes.render import render
from imagen.evaluation import detector, judge, templates
from imagen.evaluation.detector import detect
from imagen.evaluation.judge import check
from tests.evaluation.drawing import BLUE, CYAN, GRAY, GREEN, NAVY, OLIVE, RED, TEAL, WHITE, YELLOW, Drawn, draw

SHAPES = language.SHAPES


def wrong(picture: Image.Image, caption: str) -> set[str]:
    """Names of the facts that do not hold."""
    return {name for name, right in check(picture, parse(caption)).facts.items() if not right}


@pytest.mark.parametrize("side", [64, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_told_apart_small_and_large(shape: str, side: int) -> None:
    for radius, size in ((0.09, "small"), (0.2, "large")):
        for x, y in ((0.5, 0.5), (0.413, 0.611)):
            found = detect(draw([Drawn(shape, BLUE, x, y, radius)], side=side)).objects
            assert [(f.shape, f.color, f.size) for f in found] == [(shape, "blue", size)]
            assert found[0].center == pytest.approx((x, y), abs=0.02)
            assert found[0].radius == pytest.approx(radius, rel=0.12)


@pytest.mark.parametrize("shape", ["diamond", "upside down"])
def test_shapes_stand_upright(shape: str) -> None:
    assert detect(draw([Drawn(shape, RED)])).objects[0].shape is None


@pytest.mark.parametrize("side", [64, 256])
def test_every_color_is_named_on_every_background_it_occurs_on(side: int) -> None:
    for color, rgb in language.COLORS.items():
        for name, ground in language.BACKGROUNDS.items():
            if (color, name) in language.INVISIBLE:
                continue
            for pattern in (None, "dotted") if side == 64 else (None if name in ("gray", "teal") else "dotted",):
                if color == "black" and pattern:
                    continue
                seen = detect(draw([Drawn("square", rgb, pattern=pattern)], ground, side))
                assert (seen.background, [f.color for f in seen.objects]) == (name, [color]), (color, name, pattern)


@pytest.mark.parametrize("pattern", [None, "striped", "dotted", "checkered"])
@pytest.mark.parametrize("shape", ["circle", "ring", "star"])
def test_patterns_are_told_apart(shape: str, pattern: str | None) -> None:
    for color, ground in ((RED, NAVY), (WHITE, GRAY), (CYAN, TEAL)):  # two dark twins equal the ground
        for side in (256, 1024) if (shape, ground) == ("circle", NAVY) else (256,):
            found = detect(draw([Drawn(shape, color, r=0.16, pattern=pattern)], ground, side)).objects
            assert [f.pattern for f in found] == [pattern or "plain"]


def test_other_sizes_and_arrays_are_taken() -> None:
    for side in (64, 96, 192, 300, 512):
        assert [f.shape for f in detect(draw([Drawn("star", RED)], side=side)).objects] == ["star"]
    picture = draw([Drawn("star", RED)])
    array = np.asarray(picture)
    assert detect(array) == detect(picture) == detect(array / 255.0)


@pytest.mark.parametrize(
    "bad", [np.zeros((64, 64)), np.zeros((64, 80, 3)), np.zeros((32, 32, 3)), np.zeros((64, 64, 4))]
)
def test_pictures_that_cannot_be_judged_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        detect(bad)


def test_an_empty_picture_and_a_noisy_one_do_not_break_it() -> None:
    assert detect(draw([])).objects == ()
    for seed in range(3):
        for side in (64, 256):
            noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
            assert not check(noise, parse("a red circle")).ok


def test_a_slight_drift_noise_and_softness_are_forgiven() -> None:
    objects = [Drawn("star", RED, 0.3, 0.3, 0.12), Drawn("hexagon", YELLOW, 0.7, 0.7, 0.18)]
    clean = np.asarray(draw(objects, NAVY).filter(ImageFilter.GaussianBlur(1.0)), dtype=np.float64)
    rng = np.random.default_rng(0)
    drift = np.linspace(-8, 8, 256)[:, None, None] * np.array([1.0, -1.0, 0.5])
    picture = (clean + drift + rng.normal(0, 2.5, clean.shape)).clip(0, 255).astype(np.uint8)
    assert check(picture, parse("a red star above a yellow hexagon on a navy background")).ok


def test_speckles_are_ignored_until_they_are_things() -> None:
    picture = np.array(draw([Drawn("circle", RED)]))
    picture[20:24, 20:24] = 255
    assert check(picture, parse("a red circle")).ok
    picture[20:32, 20:32] = 255
    assert wrong(Image.fromarray(picture), "a red circle") >= {"count"}


def scene() -> list[Drawn]:
    return [Drawn("circle", RED, 0.3, 0.25, 0.1), Drawn("square", BLUE, 0.35, 0.7, 0.19, "striped")]


@pytest.mark.parametrize("side", [64, 256, 1024])
def test_each_wrong_fact_is_caught_and_only_that_one(side: int) -> None:
    picture = draw(scene(), OLIVE, side)
    right = "a small red circle above a large striped blue square on an olive background"
    assert check(picture, parse(right)).ok
    pattern = {"pattern"} if side > 64 else set()
    changes = {
        ("red", "orange"): {"color"},
        ("blue", "purple"): {"color"},
        ("circle", "hexagon"): {"shape"},
        ("square", "cross"): {"shape"},
        ("small", "large"): {"size"},
        ("a large", "a small"): {"size"},
        ("striped", "dotted"): pattern,
        ("striped ", ""): pattern,
        ("small red", "small checkered red"): pattern,
        ("above", "below"): {"relation"},
        ("above", "to the left of"): {"relation"},
        ("olive", "brown"): {"background"},
    }
    for (old, new), expected in changes.items():
        assert wrong(picture, right.replace(old, new)) == expected, (old, new)


def test_swapped_colors_do_not_pass() -> None:
    picture = draw(scene(), OLIVE)
    assert not check(picture, parse("a blue circle above a striped red square")).ok
    assert not check(picture, parse("a red square above a striped blue circle")).ok


def test_the_other_axis_must_separate_less() -> None:
    apart = [Drawn("circle", RED, 0.3, 0.3, 0.1), Drawn("square", BLUE, 0.75, 0.6, 0.1)]
    assert wrong(draw(apart), "a red circle to the left of a blue square") == set()
    assert wrong(draw(apart), "a red circle above a blue square") == {"relation"}


@pytest.mark.parametrize("side", [64, 256])
def test_counts_are_exact(side: int) -> None:
    places = [(0.2, 0.2), (0.75, 0.25), (0.5, 0.5), (0.2, 0.8), (0.8, 0.8)]
    words = {2: "two", 3: "three", 4: "four", 5: "five"}
    for number in range(1, 6):
        picture = draw([Drawn("star", YELLOW, x, y, 0.11) for x, y in places[:number]], NAVY, side)
        for count, word in words.items():
            assert check(picture, parse(f"{word} yellow stars")).ok == (count == number)
    odd = [Drawn("star", YELLOW, x, y, 0.11) for x, y in places[:2]] + [Drawn("star", GREEN, 0.5, 0.5, 0.11)]
    assert wrong(draw(odd, NAVY, side), "three yellow stars") == {"color"}


@pytest.mark.parametrize("side", [64, 256])
def test_touching_objects_are_one_and_close_ones_two(side: int) -> None:
    touching = [Drawn("circle", RED, 0.35, 0.5, 0.12), Drawn("circle", RED, 0.55, 0.5, 0.12)]
    assert "count" in wrong(draw(touching, side=side), "two red circles")
    for gap in (0.031, 0.04):
        close = [Drawn("circle", RED, 0.35, 0.5, 0.1), Drawn("circle", RED, 0.55 + gap, 0.5, 0.1)]
        assert wrong(draw(close, side=side), "two red circles") == set()


def test_soft_edges_do_not_join_objects_at_64_px() -> None:
    for dx in (0.0, 0.25 / 64, 0.5 / 64):
        pair = [Drawn("circle", WHITE, x + dx, 0.5, 0.1) for x in (0.35, 0.581)]
        soft = draw(pair, NAVY, 64).filter(ImageFilter.GaussianBlur(0.6))
        assert wrong(soft, "two white circles on a navy background") == set()


def test_a_dark_mean_tone_keeps_its_color_at_64_px() -> None:
    for color in ("yellow", "orange", "white", "blue"):  # a pattern's mean is 3/4 of the colour; this is less
        red, green, blue = (round(0.66 * part) for part in language.COLORS[color])
        assert [f.color for f in detect(draw([Drawn("square", (red, green, blue))], NAVY, 64)).objects] == [color]


@pytest.mark.parametrize(("side", "number"), [(64, 40), (256, 20), (1024, 4)])
@pytest.mark.parametrize("category", ["single", "relation", "counting", "background"])
def test_rendered_truth_passes_and_no_other_prompt_does(side: int, number: int, category: language.Category) -> None:
    facts: list[Facts] = []
    seen = []
    for index in range(number):
        rng = np.random.default_rng([3, index, side])
        facts.append(sample_facts(rng, "heldout" if index % 2 else "train", category))
        seen.append(detect(render(place(facts[-1], rng), side)))
    assert [f for f, s in zip(facts, seen, strict=True) if not check(s, f).ok] == []
    others = [check(seen[i], facts[i - 1]).ok for i in range(number) if facts[i] != facts[i - 1]]
    assert sum(others) <= 0.05 * len(others) + 1


def test_a_missing_object_fails_what_is_said_of_it() -> None:
    verdict = check(draw([Drawn("circle", RED)]), Facts((Thing("red", "circle"), Thing("blue", "star")), "above"))
    assert not verdict.facts["count"]
    assert not verdict.facts["relation"]
    assert not verdict.facts["shape"]
    assert not any(check(draw([]), Facts((Thing("red", "circle", None, "small"),))).facts.values())


def test_it_is_fast() -> None:
    for side, limit in ((256, 0.2), (1024, 1.5)):  # seconds of CPU, with room for a busy machine
        picture = draw(scene(), OLIVE, side)
        detect(picture)
        times = []
        for _ in range(5):
            start = time.process_time()
            detect(picture)
            times.append(time.process_time() - start)
        assert min(times) < limit


@pytest.mark.parametrize(
    ("module", "types"),
    [(detector, set()), (templates, set()), (judge, {"from imagen.data.shapes.language import Facts, Thing"})],
)
def test_it_shares_no_code_with_the_renderer(module: object, types: set[str]) -> None:
    source = Path(str(module.__file__)).read_text(encoding="utf-8")  # type: ignore[attr-defined]
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any(getattr(node, "level", 0) for node in nodes)
    assert {ast.unparse(node) for node in nodes if "imagen.data" in ast.unparse(node)} == types
