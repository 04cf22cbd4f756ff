"""Every form of a file that somebody brings is read, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_formats import table
from tests.real_formats.forms import SECTIONS

pytestmark = pytest.mark.needs("transformers", "diffusers")
_LARGEST = 10 * 2**20
ROWS = [
    pytest.param(section, number, id=form.what)
    for section, (forms, _) in SECTIONS.items()
    for number, form in enumerate(forms)
]


@pytest.mark.parametrize(("section", "number"), ROWS)
def test_a_form_is_read_or_refused_by_name(section: str, number: int, zoo: Path) -> None:
    message, form = table.outcome(section, number, zoo), SECTIONS[section][0][number]
    if form.refused is None:
        assert message is None, message
    else:
        assert message is not None and form.refused in message
        name = Path(form.path).name
        assert name in message, "the message does not say which file"
        assert not (Path.cwd() / "ran").exists()


def test_the_table_in_the_page_is_what_becomes_of_them_now(zoo: Path) -> None:
    page = table.PAGE.read_text(encoding="utf-8")
    assert table.written(page, zoo) == page, (
        "write it again: python -m tests.real_formats.table docs/reference/formats.md"
    )


def test_the_zoo_is_small(zoo: Path) -> None:
    files = {path.resolve() for path in zoo.rglob("*") if path.is_file()}
    assert sum(path.stat().st_size for path in files) < _LARGEST
