"""What a sweep tries: the settings that options span, drawn or in full, and the rounds."""

from __future__ import annotations

import math

import pytest

from cosmos_distill.errors import Refusal
from cosmos_distill.sweep.search import Round, name_of, options_of, rounds, settings, varied


def test_all_combinations_in_the_order_in_which_they_are_named():
    found = settings(varied(["stages.dmd2.method.student.lr=1e-5, 3e-5", "--control=edge,vis"]), None)
    lr = "--stages.dmd2.method.student.lr"
    assert found == [
        {lr: "1e-5", "--control": "edge"},
        {lr: "1e-5", "--control": "vis"},
        {lr: "3e-5", "--control": "edge"},
        {lr: "3e-5", "--control": "vis"},
    ]


def test_names_are_those_of_the_command_line_and_values_may_hold_commas():
    (one,) = varied(['stages.a.trainer.max_steps="1,2",3'])
    assert one.option == "--stages.a.trainer.max-steps" and one.values == ("1,2", "3")
    assert options_of({"--stages.a.method.betas": "0.9 0.99"}) == ["--stages.a.method.betas", "0.9", "0.99"]


def test_ranges_are_drawn_from_evenly_on_the_scale_that_suits_them():
    found = settings(varied(["lr=1e-6..1e-2", "weight=0..1", "steps=2..9"]), 200)
    assert len({tuple(s.items()) for s in found}) == 200
    lr = [float(s["--lr"]) for s in found]
    assert min(lr) >= 1e-6 and max(lr) <= 1e-2
    assert abs(sum(map(math.log10, lr)) / 200 + 4) < 0.25  # the middle of the decades
    assert abs(sum(float(s["--weight"]) for s in found) / 200 - 0.5) < 0.1
    assert {s["--steps"] for s in found} == set("23456789")
    assert found == settings(varied(["lr=1e-6..1e-2", "weight=0..1", "steps=2..9"]), 200)
    assert found[:20] == settings(varied(["lr=1e-6..1e-2", "weight=0..1", "steps=2..9"]), 20)


def test_no_more_are_drawn_than_there_are():
    assert len(settings(varied(["a=1,2", "b=x,y"]), 100)) == 4
    assert len(settings(varied(["steps=2..4"]), 50)) == 3


@pytest.mark.parametrize(
    ("options", "random", "said"),
    [
        ([], None, "varies something"),
        (["lr"], None, "write OPTION=VALUE"),
        (["lr="], None, "write OPTION=VALUE"),
        (["=1"], None, "write OPTION=VALUE"),
        (["lr=1,,2"], None, "one of the values is empty"),
        (["lr=1,2", "--lr=3"], None, "varied twice"),
        (["seed=1,2"], None, "--seeds N repeats"),
        (["out=a,b"], None, "a folder of its own"),
        (["lr=2..1"], 3, "2 is not below 1"),
        (["lr=1..2"], None, "--random N"),
    ],
)
def test_what_cannot_be_tried_is_refused(options, random, said):
    with pytest.raises(Refusal, match=said):
        settings(varied(options), random)


def test_rounds_go_up_the_rungs_and_then_through_the_seeds():
    assert list(rounds("4,2,1", 3)) == [Round(4, 0), Round(2, 0), Round(1, 0), Round(1, 1), Round(1, 2)]
    assert list(rounds("1", 1)) == [Round(1, 0)]
    for wrong in ("", "4", "1,1", "2,4,1", "x,1", "0", "-2,1"):
        with pytest.raises(Refusal, match="fall to 1"):
            list(rounds(wrong, 1))


def test_a_runs_folder_is_named_by_what_it_is_and_not_by_when_it_was_tried():
    one = name_of({"--a": "1", "--b": "2"}, Round(1, 0))
    assert one == name_of({"--b": "2", "--a": "1"}, Round(1, 0))
    others = [({"--a": "1", "--b": "3"}, Round(1, 0)), ({"--a": "1", "--b": "2"}, Round(1, 1)),
              ({"--a": "1", "--b": "2"}, Round(2, 0))]  # fmt: skip
    assert len({one, *(name_of(*other) for other in others)}) == 4
