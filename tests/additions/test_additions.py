"""Each kind of addition is made in a copy of the package, and works; the table says what it cost."""

import re
import shutil
from pathlib import Path

import pytest

from tests import lanes
from tests.additions.counting import HERE, KINDS, PAGE, ROOT, check, files, renewed, table


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
def test_an_addition_works(kind: str, tmp_path: Path) -> None:
    if kind == "operator" and shutil.which("g++") is None:
        lanes.missing("no g++")
    if kind == "adapter":
        lanes.require("diffusers")
    if kind == "text_encoder":
        lanes.require("transformers")
    done = check(kind, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_example_is_counted() -> None:
    assert {kind.name for kind in KINDS} == {path.parent.name for path in HERE.glob("*/check.py")}
    assert all(files(kind.name) for kind in KINDS)


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert table() in text and renewed(text) == text, "run python -m tests.additions"


def test_contributing_shows_every_kind() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"tests/additions/{kind.name}" in text, kind


def test_the_tutorial_shows_the_method_that_is_tried() -> None:
    page = (ROOT / "docs" / "tutorial" / "method.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    file = (HERE / "method" / "robust.py").read_text(encoding="utf-8")
    assert shown is not None and file.split('"""\n\n', 1)[1] == shown[1]
