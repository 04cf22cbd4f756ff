"""The findings as text and as a page."""

from __future__ import annotations

from html import escape
from typing import Any

_MARKS = {"done": "", "wrong": " WRONG", "failed": " FAILED", "left out": " (left out)"}


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def as_text(found: dict[str, Any]) -> str:
    """For a terminal."""
    lines = []
    for section in found["sections"]:
        lines += [f"{section['title']}{_MARKS[section['state']]}"]
        columns = _columns(section["rows"])
        table = [columns, *([str(row.get(name, "")) for name in columns] for row in section["rows"])]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)] if columns else []
        for row in table if columns else []:
            cells = (cell.ljust(n) for cell, n in zip(row, widths, strict=True))
            lines.append("  " + "  ".join(cells).rstrip())
        lines += [f"  {note}" for note in section["notes"]] + [""]
    wrong = found["wrong"]
    lines.append(f"{wrong} wrong" if wrong else "nothing that was tried is wrong")
    lines[-1] += f"; {found['took_s']} s of {found['budget_s']:g} s"
    return "\n".join(lines)


def as_html(found: dict[str, Any]) -> str:
    """One page that needs nothing else."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>cosmos-distill doctor</title>",
        "<style>body{font:15px sans-serif;margin:2em;max-width:90em}table{border-collapse:collapse}",
        "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}",
        ".wrong,.failed{background:#fcc}</style>",
        "<h1>cosmos-distill doctor</h1>",
        f"<p>{found['wrong']} wrong; {found['took_s']} s of {found['budget_s']:g} s</p>",
    ]
    for section in found["sections"]:
        state = section["state"]
        parts.append(f"<h2 class='{escape(state)}'>{escape(section['title'])}{_MARKS[state]}</h2>")
        columns = _columns(section["rows"])
        if columns:
            head = "".join(f"<th>{escape(name)}</th>" for name in columns)
            parts.append(f"<table><tr>{head}</tr>")
            for row in section["rows"]:
                cells = "".join(f"<td>{escape(str(row.get(name, '')))}</td>" for name in columns)
                parts.append(f"<tr class='{escape(str(row.get('state', '')))}'>{cells}</tr>")
            parts.append("</table>")
        parts += [f"<p>{escape(note)}</p>" for note in section["notes"]]
    return "\n".join(parts) + "\n"
