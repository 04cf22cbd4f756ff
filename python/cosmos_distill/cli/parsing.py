"""Recipe files and their options: the function's own arguments, and every number of what it returns."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar, get_type_hints

from cosmos_distill.config import Recipe, Stage, Train
from cosmos_distill.ranges import unchecked
from cosmos_distill.stages import Refusal
from cosmos_distill.stages.checks import wrong_numbers
from cosmos_distill.stages.options import RunOptions

Options = TypeVar("Options")


@dataclass(frozen=True)
class Invocation:
    """A command line, understood."""

    recipe: Recipe
    options: RunOptions
    out: Path
    recipe_file: Path
    argv: tuple[str, ...] = field(default=())


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
    with unchecked():  # until all is known, so that what is wrong is named as an option
        parsed = tyro.cli(
            _dataclass("Options", fields),
            args=_expand_trainer(args, recipe.stages),
            prog=prog,
            description=f"{_summary(function)}\n\n--trainer.X sets X in every training stage at once.",
            config=config,
        )
        changed = {n: getattr(parsed, n if n not in own else f"recipe_{n}") for n in overridable}
        recipe = dataclasses.replace(recipe, **changed)
    if wrong := list(wrong_numbers(recipe)):
        raise Refusal("\n".join(wrong))
    options = RunOptions(**{f.name: getattr(parsed, f"run_{f.name}") for f in dataclasses.fields(RunOptions)})
    name = "-".join(str(v) for v in (getattr(chosen, "scale", None), recipe.control) if v)
    out = options.out or Path("runs") / path.stem / name
    return Invocation(recipe, options, out, path, tuple(argv))


def options_of(cls: type[Options], args: Sequence[str], prog: str) -> Options:
    """The options of a command without a recipe.

    Raises:
        Refusal: a number is out of its range.
        SystemExit: an option is wrong (2), or help was asked for (0); tyro has printed why.
    """
    import tyro

    with unchecked():
        found = tyro.cli(cls, args=args, prog=prog)
    if wrong := list(wrong_numbers(found)):
        raise Refusal("\n".join(wrong))
    return found


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
