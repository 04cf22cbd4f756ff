"""python -m tests.additions: count what additions cost, and write the table into docs/architecture.md."""

from tests.additions.counting import PAGE, renewed

PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
