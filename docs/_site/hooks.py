"""Called by mkdocs while it builds the site (mkdocs.yml)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "python")]

from docs._site import api, floors, refusals, repository  # noqa: E402

_ROLE = re.compile(r":(?:mod|func|class|meth|data|attr):<code>(~?)([\w.]+)</code>")
_QUIET = ("benchmarks/results/", "changelog.md")
"""Pages that the search passes over: tables of numbers, and old news."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages that nobody has to list: new ones, results, and the reference of every part."""
    nav: list[dict[str, Any]] = config.nav  # type: ignore[assignment]
    sections = {name: items for entry in nav for name, items in entry.items()}
    listed = str(nav)
    pages = (path.relative_to(ROOT / "docs").as_posix() for path in sorted(ROOT.glob("docs/**/*.md")))
    for page in (page for page in pages if page not in listed):
        where = {"tutorial": "Tutorial", "howto": "How to", "reference": "Reference"}
        sections[where.get(page.split("/")[0], "Design")].append(page)
    results = [page for page in repository.PAGES.values() if page.startswith("benchmarks/results/")]
    sections["Design"].append({"Results": results})
    parts = [{part: f"{api.FOLDER}/{part}.md"} for part in api.parts()]
    sections["Reference"].append({"Python": [{"cosmos_distill": f"{api.FOLDER}/library.md"}, *parts]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/, and what is read off the code."""
    pages = {
        file.src_uri: Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path
    }
    pages |= {page: ROOT / origin for origin, page in repository.PAGES.items()}
    linked: set[str] = set()
    for page, path in pages.items():
        text = path.read_text(encoding="utf-8")
        linked |= repository.linked_files(page, text)
        if page in repository.ORIGINS:
            files.append(File.generated(config, page, content=text))
    for path in sorted(linked):
        where = f"{repository.SOURCE}/{path}"
        files.append(File.generated(config, where, abs_src_path=str(ROOT / path)))
    for part, modules in api.parts().items():
        files.append(File.generated(config, f"{api.FOLDER}/{part}.md", content=api.page(part, modules)))
    files.append(File.generated(config, f"{api.FOLDER}/library.md", content=api.library()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site needs them, and what is made of code in its place."""
    uri = page.file.src_uri
    if uri.startswith(_QUIET):
        page.meta["search"] = {"exclude": True}
    if uri == "index.md":
        page.meta["hide"] = ["navigation"]
    text = repository.for_the_site(uri, markdown)
    if uri == "howto/troubleshooting.md":
        text = refusals.fill(text)
    if uri == "architecture.md":
        text = text.replace("<!-- floors -->", floors.svg()).replace("<!-- parts -->", floors.table())
    if uri == "reference/recipes.md":
        text = text.replace("<!-- recipes -->", api.recipes())
    return text


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Names in docstrings, which are written as Sphinx has them, as links."""

    def link(found: re.Match[str]) -> str:
        name = found[2]
        shown = name.rsplit(".", 1)[-1] if found[1] else name.removeprefix("cosmos_distill.")
        if not name.startswith("cosmos_distill."):
            return f"<code>{shown}</code>"
        return f'<autoref optional identifier="{name}"><code>{shown}</code></autoref>'

    return _ROLE.sub(link, html)
