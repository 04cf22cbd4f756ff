"""Every example in the documentation runs."""

from pathlib import Path

import pytest

from tests import lanes
from tests.docs.pages import ROOT, blocks, pages, run


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if any("diffusers" in block.code for block in blocks(page) if block.run):
        lanes.require("diffusers")
    monkeypatch.chdir(tmp_path)
    run(page)


def test_wan_takes_thirty_lines() -> None:
    first = next(blocks(ROOT / "docs" / "howto" / "distil-wan.md"))
    assert len([line for line in first.code.splitlines() if line.strip()]) <= 30


PAGE = """# Title

```python
a = 1
```

<!-- not run: there is no such module -->
```python
import nowhere
```

1. In a list:

    ```python
    def f():

        return a + 1
    ```

```bash
exit 1
```

```python
assert f() == 2
raise ValueError("here")
```
"""


def test_an_error_names_page_and_line_and_blocks_share_names(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert [(block.line, block.run) for block in blocks(page)] == [
        (4, True),
        (9, False),
        (15, True),
        (25, True),
    ]
    with pytest.raises(ValueError, match="here") as raised:
        run(page)
    last = raised.traceback[-1]
    assert (str(last.path), last.lineno + 1) == (str(page), 26)
