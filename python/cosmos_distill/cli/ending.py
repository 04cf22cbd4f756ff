"""How a command ends when something is wrong: its status, and what is said."""

from __future__ import annotations

from cosmos_distill.stages import ranks

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
_COLOURS = {FAILED: "red", REFUSED: "red", INTERRUPTED: "yellow"}


def end(title: str, error: BaseException, status: int, traceback: bool, *, agreed: bool) -> int:
    """Say why the command ends; of several ranks one does (see :func:`cosmos_distill.stages.ranks.leave`)."""

    def say(rank: str = "") -> None:
        if traceback and status in (FAILED, REFUSED):
            from rich.console import Console

            Console(stderr=True).print_exception()
        text = _text(error, status, traceback)
        if rank:
            text += "\nIf this is about a lost connection, another rank has died: torchrun names it below."
        _box(f"{title}, {rank}" if rank else title, text, _COLOURS[status])

    if ranks.joined():
        ranks.leave(error, status, say, agreed=agreed)
    say()
    return status


def _text(error: BaseException, status: int, traceback: bool) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "Stopped at once. The same command goes on from the last checkpoint."
    text = str(error) or type(error).__name__
    if status == FAILED:
        kind = "" if type(error).__module__.startswith("cosmos_distill") else f"{type(error).__name__}: "
        text = f"{kind}{text}"
        if not traceback:
            text += "\n\nThe same command goes on from what is complete. --traceback shows where it happened."
    return text


def _box(title: str, text: str, colour: str) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    Console(stderr=True).print(Panel(Text(text), title=title, title_align="left", border_style=colour))
