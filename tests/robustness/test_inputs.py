"""Bad inputs that are cheap to try; ``python -m tests.robustness --inputs`` tries all of them."""

import json
from pathlib import Path

import pytest

from tests.robustness import document, inputs
from tests.robustness.inputs import Input, judge

ALL = inputs.collect()
QUICK = {name: one for name, one in ALL.items() if one.quick and not one.environment}


@pytest.mark.parametrize("one", QUICK.values(), ids=QUICK.keys())
def test_bad_input(one: Input, tmp_path: Path) -> None:
    found = judge(one, tmp_path / "x")
    assert found.outcome != "wrong", found.said


def test_the_list_is_as_long_as_it_is_said_to_be() -> None:
    assert len(ALL) >= 150
    assert {name.partition("/")[0] for name in ALL} == set(inputs.KINDS)


def test_the_page_shows_the_records() -> None:
    text = document.PAGE.read_text()
    assert document.page(text) == text, "run python -m tests.robustness --tables"
    for name in document.TABLES:
        assert f"<!-- {name} -->" in text
    recorded = json.loads((document.HERE / "inputs.json").read_text())
    assert "wrong" not in recorded.values() and set(recorded) == set(ALL)


def test_a_wrong_one_is_noticed(tmp_path: Path) -> None:
    """The judge himself: what is taken, refused without a name, or ends in a traceback, is wrong."""
    unnamed = judge(Input(lambda folder: ["nowhere.py"], ("somewhere.py",)), tmp_path / "a")
    assert unnamed.outcome == "wrong" and "without naming" in unnamed.said
    taken = judge(Input(lambda folder: ["--version"], ("version",)), tmp_path / "b")
    assert taken.outcome == "wrong" and "without a word" in taken.said
    failed = judge(Input(lambda folder: 1 / 0, ("zero",)), tmp_path / "c")
    assert failed.outcome == "wrong" and "status 1" in failed.said
    good = judge(Input(lambda folder: ["nowhere.py"], right=lambda folder: True), tmp_path / "d")
    assert good.outcome == "wrong" and "nothing is wrong with it" in good.said
    right = judge(Input(lambda folder: ["--version"], right=lambda folder: folder.exists()), tmp_path / "e")
    assert right.outcome == "right"
