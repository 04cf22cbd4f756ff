"""The tables of benchmarks in the texts are those of benchmarks/results/cpu.json."""

from __future__ import annotations

import pytest

from benchmarks import tables


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_is_what_was_measured(name: str) -> None:
    path, _ = tables.TABLES[name]
    text = path.read_text(encoding="utf-8")
    assert text == tables.renewed(name, text), f"{path}: run make bench, or tables.write() of benchmarks"
