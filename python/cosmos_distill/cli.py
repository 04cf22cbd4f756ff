"""The command line: ``cosmos-distill RECIPE.py [options]`` and a few words besides.

A recipe is a Python file with one function, ``recipe(...) -> Recipe``. Its own arguments are options
(``--scale 7b``), and so is every number of the Recipe it returns (``--stages.kd.trainer.max-steps 10``).
Nothing here imports torch before a run starts, so that ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_type_hints

from cosmos_distill.config import Recipe, Stage, Train
from cosmos_distill.stages import Refusal, ranks
from cosmos_distill.stages.options import ConsolidateOptions, RunOptions, SampleOptions
from cosmos_distill.train.guard import Interrupted, StopFlag

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130

USAGE = """\
usage: cosmos-distill RECIPE.py [options]        run a recipe, or go on with it
       cosmos-distill RECIPE.py --help           every option of a recipe
       cosmos-distill RECIPE.py --dry-run        resolved recipe, state, sizes, memory plan, launch line
       cosmos-distill generate|eval|export RECIPE.py [options]
                                                 only the stages of that kind
       cosmos-distill plan RECIPE.py [options]   the same as --dry-run
       cosmos-distill sample STUDENT.safetensors [options]
                                                 draw clips from an exported student
       cosmos-distill consolidate CHECKPOINT OUT.safetensors [options]
                                                 a network of a training checkpoint as one file
       cosmos-distill completion bash            tab completion: eval "$(cosmos-distill completion bash)"

A recipe is a Python file that holds recipe(...) -> Recipe; see recipes/transfer1_kd_dmd2.py."""

# Words before RECIPE.py -> the kind of stage they run.
ONLY_KIND = {"generate": "Generate", "eval": "Evaluate", "export": "Export"}


@dataclass(frozen=True)
class Invocation:
    """A command line, understood."""

    recipe: Recipe
    options: RunOptions
    out: Path
    recipe_file: Path
    argv: tuple[str, ...] = field(default=())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 refused, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Read when torch is imported. A thread that waits should sleep: on a machine shared with others, spinning
    # ones made a CPU run ten times slower, and alone they gain next to nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return OK if argv else REFUSED
    if argv[0] == "--version":
        import cosmos_distill

        print(f"cosmos-distill {cosmos_distill.__version__}")
        return OK
    traceback = "--traceback" in argv
    try:
        return _command(argv)
    except BrokenPipeError:  # `cosmos-distill ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Refusal as error:
        return _end("cannot run this", error, REFUSED, traceback, agreed=True)
    except Interrupted as error:
        return _end("interrupted", error, INTERRUPTED, traceback, agreed=True)
    except KeyboardInterrupt as error:
        return _end("interrupted", error, INTERRUPTED, traceback, agreed=False)
    except ranks.Elsewhere as error:
        status = {"Refusal": REFUSED, "Interrupted": INTERRUPTED}.get(error.error, FAILED)
        return _end("failed", error, status, traceback, agreed=True)
    except Exception as error:
        return _end("failed", error, FAILED, traceback, agreed=False)


def _command(argv: list[str]) -> int:
    word, rest = argv[0], argv[1:]
    if ranks.world() > 1 and word in ("completion", "sample"):
        raise Refusal(f"cosmos-distill {word} takes one process: start it without torchrun")
    if word == "completion":
        from cosmos_distill.completion import script

        print(script(rest))
        return OK
    if word == "sample":
        return _sample(rest)
    if word == "consolidate":
        return _consolidate(rest)
    kind = ONLY_KIND.get(word)
    if kind is not None or word == "plan":
        if not rest:
            raise Refusal(f"cosmos-distill {word} RECIPE.py: which recipe?")
        invocation = _parse(rest)
        if kind is None:
            return _dry_run(invocation)
        names = tuple(n for n, s in invocation.recipe.stages.items() if type(s).__name__ == kind)
        if not names:
            raise Refusal(f"{invocation.recipe_file} has no {kind} stage")
        return _run(
            dataclasses.replace(invocation, options=dataclasses.replace(invocation.options, only=names))
        )
    return _run(_parse(argv))


def _sample(args: list[str]) -> int:
    import tyro

    prog, student = "cosmos-distill sample STUDENT.safetensors", None
    if args and not args[0].startswith("-"):
        student, args = Path(args[0]), args[1:]
    options = tyro.cli(SampleOptions, args=args, prog=prog)
    if student is None:
        raise Refusal(f"{prog}: which student? The export stage of a recipe writes one")
    from cosmos_distill.stages.sample import draw

    draw(student, options)
    return OK


def _consolidate(args: list[str]) -> int:
    import tyro

    prog = "cosmos-distill consolidate CHECKPOINT OUT.safetensors"
    paths = [Path(word) for word in takewhile(lambda word: not word.startswith("-"), args)]
    options = tyro.cli(ConsolidateOptions, args=args[len(paths) :], prog=prog)
    if len(paths) != 2:
        raise Refusal(f"{prog}: name a folder checkpoints/step_... of a training stage and the file to write")
    from cosmos_distill.train.checkpoint import consolidate

    print(consolidate(*paths, role=options.role, weights=options.weights))
    return OK


def _parse(argv: Sequence[str]) -> Invocation:
    """:func:`parse`; of several ranks, which all find the same, rank 0 says what is wrong."""
    if ranks.is_main():
        return parse(argv)
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            return parse(argv)
    except (SystemExit, Refusal) as error:
        if not (isinstance(error, SystemExit) and not error.code):
            ranks.hush()
            print(said.getvalue(), file=sys.stderr)
        raise


def parse(argv: Sequence[str]) -> Invocation:
    """Understand ``RECIPE.py [options]``.

    The recipe function's own arguments are read first, because the numbers that the other options
    may override, and their defaults, are those of the Recipe it returns.

    Raises:
        Refusal: there is no such recipe file, or it holds no recipe function.
        SystemExit: an option is wrong (2), or help was asked for (0); tyro has printed why.
    """
    import tyro

    path, args = Path(argv[0]), list(argv[1:])
    function = load(path).recipe
    prog, config = f"cosmos-distill {path}", (tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed)
    own = _own_arguments(function)
    first = _dataclass("Arguments", {n: (n, t, d) for n, (t, d) in own.items()})
    # Unknown options belong to the second pass, which also prints the help of both.
    known = [a for a in args if a not in ("-h", "--help")]
    chosen, _ = tyro.cli(first, args=known, prog=prog, config=config, return_unknown_args=True)
    try:
        recipe = function(**vars(chosen))
    except ValueError as error:
        raise Refusal(f"{path}: {error}") from error
    if not isinstance(recipe, Recipe):
        raise Refusal(f"{path}: recipe() returned {type(recipe).__name__}, not a Recipe")

    fields = {name: (name, hint, getattr(chosen, name)) for name, (hint, _) in own.items()}
    for item in dataclasses.fields(RunOptions):
        hint = get_type_hints(RunOptions)[item.name]
        fields[f"run_{item.name}"] = (item.name, Annotated[hint, _help(RunOptions, item.name)], item.default)
    overridable = [f.name for f in dataclasses.fields(Recipe) if not _leaf_of(own, recipe, f.name)]
    for name in overridable:
        attribute = name if name not in fields else f"recipe_{name}"
        fields[attribute] = (name, get_type_hints(Recipe)[name], getattr(recipe, name))
    parsed = tyro.cli(
        _dataclass("Options", fields),
        args=_expand_trainer(args, recipe.stages),
        prog=prog,
        description=f"{_summary(function)}\n\n--trainer.X sets X in every training stage at once.",
        config=config,
    )
    changed = {n: getattr(parsed, n if n not in own else f"recipe_{n}") for n in overridable}
    recipe = dataclasses.replace(recipe, **changed)
    options = RunOptions(**{f.name: getattr(parsed, f"run_{f.name}") for f in dataclasses.fields(RunOptions)})
    name = "-".join(str(v) for v in (getattr(chosen, "scale", None), recipe.control) if v)
    out = options.out or Path("runs") / path.stem / name
    return Invocation(recipe, options, out, path, tuple(argv))


def load(path: Path) -> ModuleType:
    """Import a recipe file.

    Raises:
        Refusal: no such file, or it defines no ``recipe`` function.
    """
    if path.suffix != ".py" or not path.is_file():
        known = ", ".join(sorted(str(p) for p in Path("recipes").glob("*.py"))) or "none in ./recipes"
        raise Refusal(
            f"{path} is neither a recipe file nor a command. Recipes here: {known}. See cosmos-distill --help"
        )
    spec = importlib.util.spec_from_file_location(f"cosmos_distill_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses defined in a recipe look themselves up here
    spec.loader.exec_module(module)
    if not callable(getattr(module, "recipe", None)):
        raise Refusal(f"{path} defines no function recipe(...) -> Recipe")
    return module


def _summary(function: Callable[..., Recipe]) -> str:
    import docstring_parser

    parsed = docstring_parser.parse(inspect.getdoc(function) or "")
    return "\n\n".join(part for part in (parsed.short_description, parsed.long_description) if part)


def _own_arguments(function: Callable[..., Recipe]) -> dict[str, tuple[Any, Any]]:
    import docstring_parser
    import tyro

    hints = get_type_hints(function, include_extras=True)
    texts = {
        p.arg_name: p.description or "" for p in docstring_parser.parse(inspect.getdoc(function) or "").params
    }
    arguments: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            raise Refusal(f"recipe(): argument '{name}' needs a default, so that the bare command runs")
        hint: Any = hints.get(name, str)
        arguments[name] = (Annotated[hint, tyro.conf.arg(help=texts.get(name, ""))], parameter.default)
    return arguments


def _dataclass(name: str, fields: Mapping[str, tuple[str, Any, Any]]) -> type[Any]:
    """A dataclass of {attribute: (option, type, default)} for tyro; attribute and option may differ."""
    import tyro

    specs = []
    for attribute, (option, hint, default) in fields.items():
        if attribute != option:
            hint = Annotated[hint, tyro.conf.arg(name=option)]
        specs.append((attribute, hint, field(default_factory=partial(_same, default))))
    return dataclasses.make_dataclass(name, specs, frozen=True)


def _same(value: Any) -> Any:
    return value


def _help(cls: type[Any], name: str) -> Any:
    import tyro

    lines = inspect.getsource(cls).splitlines()
    index = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:"))
    return tyro.conf.arg(help=lines[index + 1].strip().strip('"'))


def _leaf_of(own: Mapping[str, Any], recipe: Recipe, name: str) -> bool:
    """A plain field that the recipe function has an argument for is set through that argument only."""
    return name in own and not dataclasses.is_dataclass(getattr(recipe, name))


def _expand_trainer(args: Sequence[str], stages: Mapping[str, Stage]) -> list[str]:
    """``--trainer.X V`` -> ``--stages.<name>.trainer.X V`` for every training stage.

    Expansions come first, so that an option that names its stage wins wherever it stands.
    """
    names = [name for name, stage in stages.items() if isinstance(stage, Train)]
    general: list[str] = []
    rest: list[str] = []
    i = 0
    while i < len(args):
        end = i + 1
        while end < len(args) and not args[end].startswith("--"):
            end += 1
        if args[i].startswith("--trainer."):
            for name in names:
                general += [f"--stages.{name}.{args[i][2:]}", *args[i + 1 : end]]
        else:
            rest += args[i:end]
        i = end
    return general + rest


def _run(invocation: Invocation) -> int:
    if invocation.options.dry_run:
        return _dry_run(invocation)
    from cosmos_distill.stages import run_recipe

    ranks.connect()
    with StopFlag() as stop:  # after that, so that torchrun can end a rank that waits for one that is gone
        run_recipe(
            invocation.recipe,
            invocation.out,
            recipe_file=invocation.recipe_file,
            only=invocation.options.only,
            argv=invocation.argv,
            stop=stop,
        )
    ranks.finish()
    return OK


def _dry_run(invocation: Invocation) -> int:
    from cosmos_distill.stages.dry_run import show

    if not ranks.is_main():
        return OK
    show(invocation.recipe, invocation.out, invocation.argv)
    return OK


def _end(title: str, error: BaseException, status: int, traceback: bool, *, agreed: bool) -> int:
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


_COLOURS = {FAILED: "red", REFUSED: "red", INTERRUPTED: "yellow"}


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
