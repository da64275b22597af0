"""Weights in files: which are found, what a header, an index and a variant say, and what a copy holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imagen.convert.weights import check_weights, copy_weights, read_json, read_weights

STEM = "model"
A, B, C = (torch.full((2, 3), value) for value in (1.0, 2.0, 3.0))


def write(folder: Path, files: dict[str, dict[str, Tensor]], index: dict[str, dict[str, str]] | None = None) -> Path:
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    for name, mapping in (index or {}).items():
        (folder / name).write_text(json.dumps({"weight_map": mapping}))
    return folder


SHARDS = {"s1.safetensors": {"a": A, "b": B}, "s2.safetensors": {"c": C}}
MAPPING = {"a": "s1.safetensors", "b": "s1.safetensors", "c": "s2.safetensors"}


@pytest.mark.parametrize(
    ("there", "variant", "expected"),
    [
        (["model"], None, "model"),
        (["model"], "fp16", "model"),
        (["model", "model.fp16"], None, "model"),
        (["model", "model.fp16"], "fp16", "model.fp16"),
        (["model", "model.fp16"], "bf16", "model"),
        (["model.fp16"], None, "model.fp16"),
        (["model.fp16"], "fp16", "model.fp16"),
        (["model.fp16", "model.bf16"], "bf16", "model.bf16"),
        (["model.fp16", "model.bf16", "model"], None, "model"),
    ],
)
def test_the_variant_asked_for_or_plain_weights_or_the_only_variant(
    tmp_path: Path, there: list[str], variant: str | None, expected: str
) -> None:
    write(tmp_path, {f"{name}.safetensors": {"a": A} for name in there})
    assert [file.name for file in read_weights(tmp_path, STEM, variant).files] == [f"{expected}.safetensors"]


@pytest.mark.parametrize(
    ("there", "variant", "held"),
    [(["fp16"], "bf16", "fp16"), (["fp16", "bf16"], None, "bf16, fp16"), (["fp16", "bf16"], "f", "bf16, fp16")],
)
def test_a_variant_is_not_guessed(tmp_path: Path, there: list[str], variant: str | None, held: str) -> None:
    write(tmp_path, {f"{STEM}.{name}.safetensors": {"a": A} for name in there})
    with pytest.raises(ValueError, match=f"holds the variants {held} and not the one asked for; choose with --variant"):
        read_weights(tmp_path, STEM, variant)


@pytest.mark.parametrize(
    ("index", "variant"),
    [
        ("model.safetensors.index.json", None),
        ("model.safetensors.index.json", "fp16"),
        ("model.safetensors.index.fp16.json", "fp16"),
        ("model.safetensors.index.fp16.json", None),
        ("model.fp16.safetensors.index.json", "fp16"),
    ],
)
def test_shards_are_those_that_an_index_names(tmp_path: Path, index: str, variant: str | None) -> None:
    if index.startswith("model.fp16"):  # diffusers' name, which shards of that name go with
        files = {f"model.fp16-{name}": tensors for name, tensors in SHARDS.items()}
        write(tmp_path, files, {index: {name: f"model.fp16-{place}" for name, place in MAPPING.items()}})
    else:
        write(tmp_path, SHARDS, {index: MAPPING})
    write(tmp_path, {"other.safetensors": {"d": A}})
    found = read_weights(tmp_path, STEM, variant)
    assert [file.name[-14:] for file in found.files] == list(SHARDS)
    assert {name: (entry.file.name[-14:], entry.dtype, entry.shape) for name, entry in found.tensors.items()} == {
        name: (place, "F32", (2, 3)) for name, place in MAPPING.items()
    }


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "weight_map names no files beside it"),
        (["s1.safetensors"], "weight_map names no files beside it"),
        ({**MAPPING, "c": "../s2.safetensors"}, "weight_map names no files beside it"),
        ({**MAPPING, "c": "/s2.safetensors"}, "weight_map names no files beside it"),
        ({**MAPPING, "c": "s3.safetensors"}, "s3.safetensors is missing; model.safetensors.index.json names it"),
        ({**MAPPING, "d": "s2.safetensors"}, "s2.safetensors: tensor 'd' is missing; the index says it is there"),
        ({**MAPPING, "a": "s2.safetensors"}, "s2.safetensors: tensor 'a' is missing; the index says it is there"),
    ],
)
def test_an_index_that_says_something_else_is_told(tmp_path: Path, mapping: dict[str, str], message: str) -> None:
    write(tmp_path, SHARDS, {f"{STEM}.safetensors.index.json": mapping})
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path, STEM)


def test_a_tensor_stands_once_and_one_file_has_no_index(tmp_path: Path) -> None:
    write(tmp_path, {**SHARDS, "s2.safetensors": {"b": B, "c": C}}, {f"{STEM}.safetensors.index.json": MAPPING})
    with pytest.raises(ValueError, match="s2.safetensors: tensor 'b' is also in s1.safetensors; expected it once"):
        read_weights(tmp_path, STEM)
    write(tmp_path, {f"{STEM}.safetensors": {"a": A}})
    with pytest.raises(ValueError, match="holds both model.safetensors and model.safetensors.index.json; remove"):
        read_weights(tmp_path, STEM)


def test_what_is_no_weight_file_is_told(tmp_path: Path) -> None:
    for folder, message in (
        (tmp_path / "nowhere", "nowhere is missing; expected a folder with model.safetensors"),
        (tmp_path, "holds no weights; expected model.safetensors"),
    ):
        with pytest.raises(ValueError, match=message):
            read_weights(folder, STEM)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="pytorch_model.bin is a pickle, .* expected model.safetensors beside it"):
        read_weights(tmp_path, STEM)
    file = tmp_path / f"{STEM}.safetensors"
    for start, message in (
        (b"PK\x03\x04", "is a pickle"),
        (b"\x80\x02", "is a pickle"),
        (b"version https://git-lfs", r"is a Git LFS pointer, not the weights; fetch them \(git lfs pull\)"),
        (b"anything", "is no whole safetensors file .*; download it again"),
    ):
        file.write_bytes(start + bytes(20))
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path, STEM)


WANTED = {"a": (2, 3), "b": (2, 3)}


@pytest.mark.parametrize(
    ("tensors", "optional", "message"),
    [
        ({"a": A, "b": B}, (), None),
        ({"a": A.half(), "b": B.bfloat16()}, (), None),
        ({"a": A.double(), "b": B}, (), None),
        ({"a": A}, ("b",), None),
        ({"a": A}, (), r"tensor 'b' is missing \(1 in all\); the part needs it with shape \(2, 3\)"),
        ({"b": A}, ("b",), r"tensor 'a' is missing \(1 in all\)"),
        ({}, (), r"tensor 'a' is missing \(2 in all\)"),
        ({"a": A, "b": B, "c": C}, (), r"tensor 'c' of shape \(2, 3\) has no place in the part"),
        ({"a": A, "b": B.T.contiguous()}, (), r"tensor 'b' has shape \(3, 2\), expected \(2, 3\)"),
        ({"a": A, "b": B.int()}, (), "tensor 'b' has dtype I32, expected one of F16, BF16, F32, F64"),
    ],
)
def test_every_tensor_is_compared_with_what_is_wanted(
    tmp_path: Path, tensors: dict[str, Tensor], optional: tuple[str, ...], message: str | None
) -> None:
    weights = read_weights(write(tmp_path, {f"{STEM}.safetensors": tensors}), STEM)
    if message is None:
        return check_weights(weights, WANTED, optional, "the part")
    with pytest.raises(ValueError, match=message):
        check_weights(weights, WANTED, optional, "the part")


def test_shards_are_copied_under_plain_names_with_an_index_of_their_own(tmp_path: Path) -> None:
    files = {"model.fp16-9.safetensors": {"a": A.half(), "b": B.double()}, "model.fp16-7.safetensors": {"c": C}}
    mapping = {"a": "model.fp16-9.safetensors", "b": "model.fp16-9.safetensors", "c": "model.fp16-7.safetensors"}
    write(tmp_path, files, {"model.fp16.safetensors.index.json": mapping})
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_weights(read_weights(tmp_path, STEM, "fp16"), copy)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert {path.name for path in copy.iterdir()} == {first, second, "model.safetensors.index.json"}
    index = read_json(copy / "model.safetensors.index.json")
    assert index["weight_map"] == {"a": second, "b": second, "c": first}
    assert index["metadata"]["total_size"] == 6 * 2 + 6 * 8 + 6 * 4, "bytes"
    assert torch.equal(load_file(copy / second)["b"], B.double())
    assert {name: entry.file.name for name, entry in read_weights(copy, STEM).tensors.items()} == index["weight_map"]


def test_one_file_is_copied_under_its_plain_name(tmp_path: Path) -> None:
    write(tmp_path, {"model.fp16.safetensors": {"a": A}})
    (tmp_path / "copy").mkdir()
    copy_weights(read_weights(tmp_path, STEM), tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["model.safetensors"]


def test_what_is_no_object_in_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, message in (
        (None, "a.json is missing; download the checkpoint again, whole"),
        ("{", r"a.json cannot be read as JSON \(.*\); download it again"),
        ("[1]", "a.json holds a JSON list, expected an object; download it again"),
    ):
        if content is not None:
            path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_json(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
