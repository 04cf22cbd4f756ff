"""Pages of the site that are files of the repository outside of docs/, and links between them.

A page is written so that its links work where it lies, on a code host as in an editor. For the site each link
is resolved in the repository and written anew: to a page, to a picture, to what the reference says of a
module of the package, or to a copy of the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from docs._site import api

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "source"
"""Folder of the site for files of the repository that are no pages."""
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "python/cosmos_distill/weights/README.md": "weights.md",
    "benchmarks/README.md": "benchmarks/goals.md",
    **{
        path.relative_to(ROOT).as_posix(): path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    },
}
"""Path in the repository -> page of the site."""
ORIGINS = {page: origin for origin, page in PAGES.items()}

_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[ ]*$", re.DOTALL | re.MULTILINE)


def origin(page: str) -> str:
    """Where a page of the site lies in the repository."""
    return ORIGINS.get(page, f"docs/{page}")


def target(path: str) -> str | None:
    """What stands on the site for a path of the repository, or None where that does not exist."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return api.place(ROOT / path) or (f"{SOURCE}/{path}" if (ROOT / path).is_file() else None)


def _each_link(page: str, text: str, change: Callable[[str, str], str | None]) -> str:
    """``text`` with ``change(path in the repository, anchor)`` in the place of every relative link."""
    folder = os.path.dirname(origin(page))

    def one(found: re.Match[str]) -> str:
        path, mark, anchor = found[2].partition("#")
        if not path or ":" in path or path.startswith("/"):
            return found[0]
        written = change(os.path.normpath(os.path.join(folder, path)), mark + anchor)
        return found[0] if written is None else f"{found[1]}{written}{found[3]}"

    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(one, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(one, text[end:])])


def for_the_site(page: str, text: str) -> str:
    """The text of a page with links as the site needs them."""

    def change(path: str, anchor: str) -> str | None:
        found = target(path)
        return None if found is None else os.path.relpath(found, os.path.dirname(page) or ".") + anchor

    return _each_link(page, text, change)


def linked_files(page: str, text: str) -> set[str]:
    """Files of the repository that a page links to and that are no pages."""
    found: set[str] = set()

    def change(path: str, anchor: str) -> None:
        where = target(path)
        if where is not None and where.startswith(f"{SOURCE}/"):
            found.add(path)

    _each_link(page, text, change)
    return found


def missing_links(page: str, text: str) -> list[str]:
    """Relative links of a page to what the repository does not have."""
    found: list[str] = []

    def change(path: str, anchor: str) -> None:
        if not (ROOT / path).exists():
            found.append(path)

    _each_link(page, text, change)
    return found
