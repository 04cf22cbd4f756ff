"""Commands in the pages: recipes are there, options are options, for the real parser."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmos_distill import cli
from cosmos_distill.config import Recipe
from docs._site import repository
from tests.docs.pages import commands

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / origin for origin in repository.PAGES)]
TRIED = [
    pytest.param(page, words, id=f"{page.relative_to(ROOT)}: {' '.join(words)}"[:110])
    for page in dict.fromkeys(PAGES)
    for words in commands(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "words"), TRIED)
def test_a_command_of_a_page_is_taken(
    page: Path,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The parser takes its words. Files that somebody would bring are not there, and nothing is run."""
    taken: list[object] = []
    monkeypatch.setattr(f"{cli.main.__module__}._run", lambda invocation: taken.append(invocation) or 0)
    monkeypatch.setattr(f"{cli.main.__module__}._dry_run", lambda invocation: taken.append(invocation) or 0)
    monkeypatch.setattr("cosmos_distill.sampling.sample.draw", lambda *given: taken.append(given))
    monkeypatch.setattr("cosmos_distill.inspection.command.inspect", lambda *given: taken.append(given))
    monkeypatch.setattr("cosmos_distill.run.planning.show", lambda *given: taken.append(given))
    monkeypatch.setattr("cosmos_distill.run.launching.write", lambda *given: taken.append(given))
    monkeypatch.setattr("cosmos_distill.sweep.command.sweep", lambda *given: taken.append(given))
    monkeypatch.setattr("cosmos_distill.train.checkpoint.consolidate", lambda *a, **k: taken.append(a) or "")
    method = (ROOT / "tests" / "additions" / "method" / "robust.py").read_text(encoding="utf-8")
    (tmp_path / "my_method.py").write_text(method)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    if words[-1] == "--help":
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 0
        return
    assert cli.main(words) == 0, f"{page}: {capsys.readouterr()}"
    assert taken


def test_an_option_that_there_is_not_is_found(capsys: pytest.CaptureFixture) -> None:
    (words,) = commands("```bash\nx/cosmos-distill recipes/r.py --scale mini \\\n  --control x  # why\n```\n")
    assert words == ["recipes/r.py", "--scale", "mini", "--control", "x"]
    recipe = str(ROOT / "recipes" / "transfer1_kd_dmd2.py")
    assert isinstance(cli.parse([recipe, "--scale", "mini"]).recipe, Recipe)
    with pytest.raises(SystemExit) as end:
        cli.main([recipe, "--scal", "mini"])
    assert end.value.code == 2


def test_commands_are_found() -> None:
    assert len(TRIED) > 25
