"""Recipe files and their options: the function's own arguments, and every number of what it returns."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from cosmos_distill.cli import recipe_file
from cosmos_distill.config import Recipe, Stage, Train
from cosmos_distill.config.controls import weights_of
from cosmos_distill.errors import Refusal
from cosmos_distill.families import preset
from cosmos_distill.ranges import unchecked
from cosmos_distill.run.checks import wrong_numbers
from cosmos_distill.sampling.options import RunOptions

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

Options = TypeVar("Options")
SHORTHANDS = """--trainer.X sets X in every training stage at once. --network NAME takes the sizes of a
preset, on which --network.width and the others then work."""


@dataclass(frozen=True)
class Invocation:
    """A command line, understood."""

    recipe: Recipe
    options: RunOptions
    out: Path
    recipe_file: Path
    argv: tuple[str, ...] = field(default=())


Change = Callable[[Recipe], tuple[Recipe, str]]
"""Of the recipe that a function returns, before its numbers become options: another one, and how the name of
its run ends."""


def parse(argv: Sequence[str], change: Change | None = None) -> Invocation:
    """Understand ``RECIPE.py [options]``.

    The recipe function's own arguments are read first, because the numbers that the other options
    may override, and their defaults, are those of the Recipe it returns.

    Raises:
        Refusal: there is no such recipe file, it holds no recipe function, or that fails.
        SystemExit: an option is wrong (2), or help was asked for (0); tyro has printed why.
    """
    import tyro

    path, args = Path(argv[0]), list(argv[1:])
    function = recipe_file.load(path).recipe
    prog, config = f"cosmos-distill {path}", (tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed)
    cli = partial(tyro.cli, prog=prog, config=config, registry=_registry())
    own = _own_arguments(path, function)
    _refuse_empty(args)
    first = _dataclass("Arguments", {n: (n, t, d) for n, (t, d) in own.items()})
    # Unknown options belong to the second pass, which also prints the help of both.
    known = [a for a in args if a not in ("-h", "--help")]
    with _options_of(path, function):
        chosen, _ = cli(first, args=known, return_unknown_args=True)
    _refuse_control(vars(chosen).get("control"))
    recipe = recipe_file.call(path, function, vars(chosen))
    if "network" not in own:
        recipe, args = _take_preset(recipe, args)
    recipe, ending = (recipe, "") if change is None else change(recipe)

    fields = {name: (name, hint, getattr(chosen, name)) for name, (hint, _) in own.items()}
    for item in dataclasses.fields(RunOptions):
        hint = get_type_hints(RunOptions)[item.name]
        fields[f"run_{item.name}"] = (item.name, Annotated[hint, _help(RunOptions, item.name)], item.default)
    overridable = [f.name for f in dataclasses.fields(Recipe) if not _leaf_of(own, recipe, f.name)]
    for name in overridable:
        attribute = name if name not in fields else f"recipe_{name}"
        fields[attribute] = (name, get_type_hints(Recipe)[name], getattr(recipe, name))
    # Numbers are looked at when all are known, so that what is wrong is named as an option.
    with unchecked():
        with _options_of(path, function):
            parsed = cli(
                _dataclass("Options", fields),
                args=_expand_trainer(args, recipe.stages),
                description=f"{_summary(function)}\n\n{SHORTHANDS}",
            )
        changed = {n: getattr(parsed, n if n not in own else f"recipe_{n}") for n in overridable}
        recipe = dataclasses.replace(recipe, **changed)
    if wrong := list(wrong_numbers(recipe)):
        raise Refusal("\n".join(wrong))
    options = RunOptions(**{f.name: getattr(parsed, f"run_{f.name}") for f in dataclasses.fields(RunOptions)})
    control = (recipe.control or "").replace(":", "").replace(",", "-")
    name = "-".join(str(v) for v in (getattr(chosen, "scale", None), control, ending) if v)
    out = options.out or Path("runs") / path.stem / name
    return Invocation(recipe, options, out, path, tuple(argv))


def _refuse_control(given: object) -> None:
    """Raises Refusal for what names no controls, before the recipe's own line is blamed for it."""
    try:
        if isinstance(given, str):
            weights_of(given)
    except ValueError as error:
        raise Refusal(f"--control {given}: {error}") from error


def _summary(function: Callable[..., Recipe]) -> str:
    import docstring_parser

    parsed = docstring_parser.parse(inspect.getdoc(function) or "")
    return "\n\n".join(part for part in (parsed.short_description, parsed.long_description) if part)


def options_of(cls: type[Options], args: Sequence[str], prog: str) -> Options:
    """The options of a command without a recipe.

    Raises:
        Refusal: a number is out of its range.
        SystemExit: an option is wrong (2), or help was asked for (0); tyro has printed why.
    """
    import tyro

    with unchecked():
        found = tyro.cli(cls, args=args, prog=prog, registry=_registry())
    if wrong := list(wrong_numbers(found)):
        raise Refusal("\n".join(wrong))
    return found


def split_options(cls: type[Options], args: Sequence[str], prog: str) -> tuple[Options, list[str]]:
    """The options of a command that passes all others on to a recipe, and these.

    Raises:
        Refusal: a number is out of its range.
        SystemExit: an option is wrong (2), or help was asked for (0); tyro has printed why.
    """
    import tyro

    with unchecked():
        found, rest = tyro.cli(
            cls,
            args=args,
            prog=prog,
            registry=_registry(),
            return_unknown_args=True,
            config=(tyro.conf.UseAppendAction,),  # what may be given several times takes one word each time
        )
    if wrong := list(wrong_numbers(found)):
        raise Refusal("\n".join(wrong))
    return found, rest


def _registry() -> ConstructorRegistry:
    """How option values are read where tyro's own way is not enough: a path is not empty, and beside some
    words None may be written in small letters."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    found = ConstructorRegistry()

    def path(text: list[str]) -> Path:
        if not text[0].strip():
            raise ValueError("an empty path: leave the option out, or name a file or folder")
        return Path(text[0])

    @found.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
        if info.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=path,
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
        )

    @found.primitive_rule
    def word_or_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str | None] | None:
        words = _words_beside_none(info.type)
        if not words:
            return None

        def read(text: list[str]) -> str | None:
            if text[0] not in words and text[0].lower() not in ("none", "null"):
                raise ValueError(f"{text[0]!r} is none of {', '.join(words)} or None")
            return text[0] if text[0] in words else None

        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{{None,{','.join(words)}}}",
            instance_from_str=read,
            is_instance=lambda value: value is None or value in words,
            str_from_instance=lambda value: [str(value)],
        )

    return found


def _words_beside_none(hint: Any) -> tuple[str, ...]:
    """Those of ``Literal[...] | None``; nothing for any other type."""
    parts = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else set()
    if len(parts) != 2 or NoneType not in parts:
        return ()
    (other,) = parts - {NoneType}
    words = get_args(other) if get_origin(other) is Literal else ()
    return words if all(isinstance(word, str) for word in words) else ()


def _refuse_empty(args: Sequence[str]) -> None:
    """``--only`` without a name would run everything."""
    for i, word in enumerate(args):
        following = args[i + 1] if i + 1 < len(args) else "--"
        if word == "--only=" or (word == "--only" and (not following or following.startswith("--"))):
            raise Refusal("--only is empty: name the stages to run, or leave it out to run all of them")


@contextmanager
def _options_of(path: Path, function: Callable[..., Any]) -> Iterator[None]:
    """Raises Refusal where a recipe's arguments, or what it returns, cannot be made options."""
    try:
        yield
    except Exception as error:
        said = getattr(error, "message", None) or str(error)
        text = "".join(map(str, said)) if isinstance(said, tuple) else str(said)
        raise Refusal(
            f"{recipe_file.where(path, function)}: what recipe() takes or returns cannot be made options "
            f"({type(error).__name__}: {text})"
        ) from error


def _own_arguments(path: Path, function: Callable[..., Recipe]) -> dict[str, tuple[Any, Any]]:
    import docstring_parser
    import tyro

    place = recipe_file.where(path, function)
    with recipe_file.blamed(path):
        hints = get_type_hints(function, include_extras=True)
        signature = inspect.signature(function)
    texts = {
        p.arg_name: p.description or "" for p in docstring_parser.parse(inspect.getdoc(function) or "").params
    }
    arguments: dict[str, tuple[Any, Any]] = {}
    taken = {"help", *(f.name for f in dataclasses.fields(RunOptions))}
    for name, parameter in signature.parameters.items():
        if name in taken:
            raise Refusal(
                f"{place}: recipe(): argument '{name}' would be --{name.replace('_', '-')}, which every "
                "recipe has already: choose another name"
            )
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise Refusal(f"{place}: recipe(): '{parameter}' is no option: give every argument a name")
        if parameter.default is inspect.Parameter.empty:
            raise Refusal(
                f"{place}: recipe(): argument '{name}' needs a default, so that the bare command runs"
            )
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


def _take_preset(recipe: Recipe, args: Sequence[str]) -> tuple[Recipe, list[str]]:
    """``--network NAME``, which the recipe's own options do not know: the recipe of that preset, and the
    rest.

    Raises:
        Refusal: there is no such preset.
    """
    rest, left = [], list(args)
    while left:
        word = left.pop(0)
        option, equals, name = word.partition("=")
        if option != "--network":
            rest.append(word)
            continue
        if not equals and left and not left[0].startswith("--"):
            name = left.pop(0)
        try:
            sizes = preset(name)
        except ValueError as error:
            raise Refusal(f"--network {error}") from error
        with unchecked():
            recipe = dataclasses.replace(recipe, network=sizes)
    return recipe, rest


def _expand_trainer(args: Sequence[str], stages: Mapping[str, Stage]) -> list[str]:
    """``--trainer.X V`` -> ``--stages.<name>.trainer.X V`` for every training stage.

    Expansions come first, so that an option that names its stage wins wherever it stands.

    Raises:
        Refusal: there is no training stage.
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
            if not names:
                raise Refusal(f"{args[i]}: this recipe has no Train stage, in which it could be set")
            for name in names:
                general += [f"--stages.{name}.{args[i][2:]}", *args[i + 1 : end]]
        else:
            rest += args[i:end]
        i = end
    return general + rest
