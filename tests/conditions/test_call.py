"""From the arguments of a call, or of a batch, to what networks are given by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from imagen.conditions.call import CALLED, called
from imagen.conditions.condition import Draw, Given, Target, arguments
from imagen.conditions.label import Label, Labels
from imagen.conditions.options import OPTIONS, check_conditions, class_number
from imagen.data.fields import Label as Field
from imagen.data.prepare import Want
from tests.factories import tiny_base
from unets.contract import TextContext

CPU = torch.device("cpu")
PLAIN = tiny_base().facts
LABELLED = replace(PLAIN, classes={"label": 3})
MASKED = replace(PLAIN, extra_channels={"mask": 4})
NOTHING = dict.fromkeys(CALLED)


@pytest.mark.parametrize("networks", [[PLAIN, LABELLED], [LABELLED, PLAIN], [MASKED, PLAIN, LABELLED]])
def test_a_condition_is_given_where_any_of_the_networks_reads_it(networks: list) -> None:
    made = called({**NOTHING, "label": "b"}, {"label": {"names": ["a", "b", "c"]}}, networks, CPU)
    assert [one.name for one in made] == ["label", "mask"][: 1 + (MASKED in networks)]
    assert made[0].numbers == (1,)  # type: ignore[attr-defined]


def test_what_is_not_passed_is_the_null_of_networks_that_read_it_and_nothing_to_others() -> None:
    assert called(NOTHING, {}, [PLAIN], CPU) == []
    (labels,) = called(NOTHING, {"mask": {}}, [LABELLED], CPU)
    assert labels == Labels((None,), CPU)
    for name, value in (("label", 0), ("mask", [torch.zeros(4, 2, 2)])):
        with pytest.raises(ValueError, match=f"^{name} is given but no stage that runs was trained with one"):
            called({**NOTHING, name: value}, {}, [PLAIN, PLAIN], CPU)


def test_every_argument_of_a_call_has_its_option_at_the_command_line() -> None:
    assert OPTIONS.keys() == CALLED.keys()


def test_one_value_is_all_pictures_and_several_are_the_prompts_in_turn() -> None:
    target = Target(tiny_base(), ("conditional",), (8, 8), 6)
    assert target.rows(1, CPU).tolist() == [0] * 6
    assert target.rows(3, CPU).tolist() == [0, 0, 1, 1, 2, 2]


def test_rows_are_taken_of_everything_that_is_given_and_stacked_branch_by_branch() -> None:
    context = TextContext(torch.arange(3.0), (torch.arange(3.0) + 10,), (torch.arange(3.0) + 20,), None)
    rows = {"conditional": torch.tensor([0, 1]), "unconditional": torch.tensor([2, 2])}
    given = Given({"context": context, "lowres": torch.arange(3.0) + 30}, rows, {"label": torch.arange(3) + 40})
    seen = given.select(given.stacked(("unconditional", "conditional"), torch.arange(2)))
    assert seen.rows is None
    assert seen.values["lowres"].tolist() == [32, 32, 30, 31]  # type: ignore[union-attr]
    assert seen.named["label"].tolist() == [42, 42, 40, 41]
    text = seen.values["context"]
    assert [part.tolist() for part in (text.pooled, *text.keys, *text.values)] == [  # type: ignore[union-attr]
        [2, 2, 0, 1],
        [12, 12, 10, 11],
        [22, 22, 20, 21],
    ]
    own = Given({"lowres": torch.zeros(2)}).stacked(("unconditional", "conditional"), torch.tensor([1, 0]))
    assert own.tolist() == [1, 0, 1, 0]


def test_arguments_are_those_of_all_conditions() -> None:
    one, two = Given({"a": torch.ones(1)}, named={"x": torch.ones(2)}), Given({"b": torch.ones(3)})
    three = Given(named={"y": torch.ones(4)})
    made = arguments([one, two, three])
    assert made.keys() == {"a", "b", "conditions"}
    assert [len(made[name]) for name in ("a", "b")] == [1, 3]
    assert {name: len(value) for name, value in made["conditions"].items()} == {"x": 2, "y": 4}


def test_a_label_in_training_and_of_held_out_pictures() -> None:
    label, image = Label(3, ("a", "b", "c")), torch.zeros(2, 3, 4, 4)
    assert label.wants(Want(4)).fields == {"label": Field(3, ("a", "b", "c"))}
    ids = label.batch({"label": torch.tensor([2, 0], dtype=torch.int32)}, image, torch.zeros(2))
    assert (ids.tolist(), ids.dtype) == ([2, 0], torch.int64)
    assert label.stored == {"names": ["a", "b", "c"]}
    assert label.needs(5) == ("classes", 3)
    assert label.sampled({"label": [2, 0]}, image) == Labels((2, 0), CPU)
    assert label.sampled(None, image) == label.sampled({"label": [1]}, None) == Labels((None,), CPU)
    given = label.inputs(torch.tensor([2, 0]), Draw(torch.tensor([False, True]), torch.zeros(2), lambda *_: image))
    assert {name: value.tolist() for name, value in given.named.items()} == {"label": [2, 3]}


@pytest.mark.parametrize(("label", "number"), [(0, 0), ("0", 0), (" 2 ", 2), (2, 2), ("2", 2), (None, None)])
def test_a_number_below_the_number_of_classes_is_one(label: object, number: int | None) -> None:
    assert class_number(label, {}, 3) == number
    assert class_number(label, {}, 0) is None  # no network reads one


def test_a_name_that_is_a_number_is_that_class_and_spaces_are_no_part_of_it() -> None:
    stored = {"names": ["1", "red_ball", "x"]}
    assert [class_number(label, stored, 3) for label in ("1", " 1 ", 1, "2", " red  ball ")] == [0, 0, 1, 2, 1]


@pytest.mark.parametrize("label", [3, -1, "3", "-1", 1.0, True])
def test_any_other_number_is_none(label: object) -> None:
    with pytest.raises(
        ValueError, match="label is .*(expected an integer from 0 to 2|no names; give a number below 3)"
    ):
        class_number(label, {}, 3)


def test_what_is_given_is_checked_against_what_is_stored_and_every_one_of_them() -> None:
    networks = [{"extra_channels": {"mask": 4}}, {"classes": {"label": 3}}]
    stored = {"label": {"names": ["a", "b", "c"]}}
    check_conditions({"mask": "file", "label": "c"}, stored, networks)
    with pytest.raises(ValueError, match="label is 'd'; expected one of a, b, c"):
        check_conditions({"mask": "file", "label": "d"}, stored, networks)
    with pytest.raises(ValueError, match="mask is given but no stage"):
        check_conditions({"label": "c", "mask": "file"}, stored, networks[1:])
