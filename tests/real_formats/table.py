"""The table of formats of docs/reference/formats.md: what every form in the zoo comes to when it is opened.

python -m tests.real_formats.table docs/reference/formats.md
"""

from __future__ import annotations

import re
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.real_formats import make
from tests.real_formats.forms import SECTIONS, Form

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"
BEGIN, END = (
    "<!-- formats: python -m tests.real_formats.table docs/reference/formats.md -->",
    "<!-- /formats -->",
)
_LONGEST = 150
_LIBRARIES = re.compile(r" \(Error while deserializing[^)]*\)|(?<=captions): Expecting value.*")
"""What other packages say, in words of a version of theirs."""
_NUMBERS = re.compile(r"0{20,}\w|[0-9a-f]{8}-[0-9a-f-]{27}")


@cache
def outcome(section: str, number: int, zoo: Path) -> str | None:
    """What is said of a form, or None where it is read."""
    forms, opened = SECTIONS[section]
    try:
        opened(forms[number], zoo)
    except (ValueError, OSError) as error:
        return " ".join(str(error).replace(f"{zoo}/", "").split())
    return None


def said(form: Form, message: str) -> str:
    """The part of a message that says what is wrong, short enough for a table."""
    assert form.refused is not None
    parts = re.split(r"(?<=[.;:]) (?=\S)", _NUMBERS.sub("...", message))
    first = next((i for i, part in enumerate(parts) if form.refused in part), 0)
    text = " ".join(parts[first:]) if first else message
    text = _LIBRARIES.sub("", _NUMBERS.sub("...", text))
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0] + " ..."


def table(zoo: Path) -> str:
    """All sections, as Markdown."""
    lines = []
    for section, (forms, _) in SECTIONS.items():
        lines += [f"### {section}", "", "| what you have | what becomes of it |", "|---|---|"]
        for number, form in enumerate(forms):
            message = outcome(section, number, zoo)
            cell = "works" if message is None else f"refused: “{said(form, message)}”"
            lines.append(f"| {form.what} | {cell.replace('|', chr(92) + '|')} |")
        lines.append("")
    return "\n".join(lines)


def written(page: str, zoo: Path) -> str:
    """The page with the table as it is now."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(zoo)}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        zoo = make.make(Path(folder) / "zoo")
        target = Path(sys.argv[1])
        target.write_text(written(target.read_text(encoding="utf-8"), zoo), encoding="utf-8")
