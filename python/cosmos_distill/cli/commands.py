"""The commands: what each does with its arguments, and with which status it ends."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from itertools import takewhile
from pathlib import Path

from cosmos_distill.cli.ending import FAILED, OK, REFUSED, end, open_streams, outlived
from cosmos_distill.cli.parsing import Change, Invocation, options_of, parse, split_options
from cosmos_distill.config import Encode, Recipe
from cosmos_distill.errors import Refusal
from cosmos_distill.inspection.options import InspectOptions
from cosmos_distill.launch import ranks
from cosmos_distill.launch.options import LaunchOptions, PlanOptions
from cosmos_distill.ranges import unchecked
from cosmos_distill.run.folder import blocked
from cosmos_distill.sampling.options import ConsolidateOptions, SampleOptions
from cosmos_distill.sweep.options import SweepOptions
from cosmos_distill.train.guard import StopFlag

USAGE = """\
usage: cosmos-distill RECIPE.py [options]        run a recipe, or go on with it
       cosmos-distill RECIPE.py --help           every option of a recipe
       cosmos-distill RECIPE.py --dry-run        resolved recipe, state, sizes, memory plan, launch line
       cosmos-distill generate|eval|export RECIPE.py [options]
                                                 only the stages of that kind
       cosmos-distill encode RECIPE.py [options]  its clips as latents, once, in shards to train on
       cosmos-distill plan RECIPE.py --gpus N [--gpu NAME] [options]
                                                 what it needs there: memory, time, disk, and layouts that fit
       cosmos-distill launch RECIPE.py --nodes N --via slurm|torchrun|k8s --write FILE [options]
                                                 a script that starts it on several machines
       cosmos-distill sweep RECIPE.py --vary OPTION=VALUE,VALUE [options]
                                                 many settings of a recipe, compared on held-out clips
       cosmos-distill inspect DATA --out PAGE.html
                                                 what a folder of clips holds, as a page
       cosmos-distill sample STUDENT.safetensors [options]
                                                 draw clips from an exported student
       cosmos-distill consolidate CHECKPOINT OUT.safetensors [options]
                                                 a network of a training checkpoint as one file
       cosmos-distill doctor [--budget 10m] [--json FILE] [--html FILE]
                                                 what this machine can do: kernels tried, speeds measured
       cosmos-distill completion bash            tab completion: eval "$(cosmos-distill completion bash)"

A recipe is a Python file that holds recipe(...) -> Recipe; see recipes/transfer1_kd_dmd2.py."""


# Words before RECIPE.py -> the kind of stage they run.
WORDS = (
    "-h",
    "--help",
    "--version",
    "completion",
    "consolidate",
    "doctor",
    "inspect",
    "launch",
    "plan",
    "sample",
    "sweep",
)
"""First words of commands that run no recipe."""
ONLY_KIND = {"encode": "Encode", "generate": "Generate", "eval": "Evaluate", "export": "Export"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 refused, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Read when torch is imported. A thread that waits should sleep: on a machine shared with others, spinning
    # ones made a CPU run ten times slower, and alone they gain next to nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    open_streams()
    ranks.end_with_launcher()
    running = bool(argv) and argv[0] not in WORDS and not {"--dry-run", "-h", "--help"} & set(argv)
    with outlived(OSError if running else BrokenPipeError):  # `cosmos-distill ... | head`
        try:
            status = _command(argv)
            sys.stdout.flush()
            return status
        except (Exception, KeyboardInterrupt) as error:
            return end(error, traceback="--traceback" in argv, running=running)


def _command(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return OK if argv else REFUSED
    word, rest = argv[0], argv[1:]
    if word == "--version":
        import cosmos_distill

        print(f"cosmos-distill {cosmos_distill.__version__}")
        return OK
    if ranks.world() > 1 and word in ("completion", "consolidate", "inspect", "launch", "sample", "sweep"):
        raise Refusal(f"cosmos-distill {word} takes one process: start it without torchrun")
    if word == "completion":
        from cosmos_distill.cli.completion import script

        print(script(rest))
        return OK
    if word == "doctor":
        from cosmos_distill.ops.doctor import main as doctor

        return doctor(rest)
    if word == "sample":
        return _sample(rest)
    if word == "sweep":
        return _sweep(rest)
    if word == "inspect":
        return _inspect(rest)
    if word == "consolidate":
        return _consolidate(rest)
    if word == "plan":
        return _plan(rest)
    if word == "launch":
        return _launch(rest)
    kind = ONLY_KIND.get(word)
    if kind is not None:
        if not rest:
            raise Refusal(f"cosmos-distill {word} RECIPE.py: which recipe?")
        invocation = _parse(rest, _encoding if kind == "Encode" else None)
        names = tuple(n for n, s in invocation.recipe.stages.items() if type(s).__name__ == kind)
        if not names:
            raise Refusal(f"{invocation.recipe_file} has no {kind} stage")
        if others := [n for n in invocation.options.only if n not in names]:
            raise Refusal(f"--only {' '.join(others)}: cosmos-distill {word} runs {', '.join(names)}")
        options = dataclasses.replace(invocation.options, only=invocation.options.only or names)
        return _run(dataclasses.replace(invocation, options=options, argv=(word, *invocation.argv)))
    return _run(_parse(argv))


def _sample(args: list[str]) -> int:
    prog, student = "cosmos-distill sample STUDENT.safetensors", None
    if args and not args[0].startswith("-"):
        student, args = Path(args[0]), args[1:]
    options = options_of(SampleOptions, args, prog)
    if student is None:
        raise Refusal(f"{prog}: which student? The export stage of a recipe writes one")
    from cosmos_distill.sampling.sample import draw

    draw(student, options)
    return OK


def _sweep(args: list[str]) -> int:
    prog = "cosmos-distill sweep RECIPE.py"
    if not args or args[0].startswith("-"):
        options_of(SweepOptions, args, prog)
        raise Refusal(f"{prog}: which recipe?")
    options, rest = split_options(SweepOptions, args[1:], prog)
    from cosmos_distill.sweep.command import sweep

    with StopFlag() as stop:
        return FAILED if sweep(args[0], rest, options, lambda argv: parse(argv).recipe, stop) else OK


def _plan(args: list[str]) -> int:
    prog = "cosmos-distill plan RECIPE.py"
    if not args or args[0].startswith("-"):
        options_of(PlanOptions, args, prog)
        raise Refusal(f"{prog}: which recipe?")
    options, rest = split_options(PlanOptions, args[1:], prog)
    invocation = _parse([args[0], *rest])
    if options == PlanOptions():
        return _dry_run(invocation)
    if options.gpus is None:
        raise Refusal(f"{prog}: on how many? Give --gpus as well")
    from cosmos_distill.run.planning import show

    if ranks.is_main():
        show(invocation.recipe, options)
    return OK


def _launch(args: list[str]) -> int:
    prog = "cosmos-distill launch RECIPE.py"
    if not args or args[0].startswith("-"):
        options_of(LaunchOptions, args, prog)
        raise Refusal(f"{prog}: which recipe?")
    options, rest = split_options(LaunchOptions, args[1:], prog)
    from cosmos_distill.run.launching import write

    invocation = _parse([args[0], *rest])
    write(invocation.recipe, options, [args[0], *rest], invocation.recipe_file.stem)
    return OK


def _inspect(args: list[str]) -> int:
    prog, data = "cosmos-distill inspect DATA", None
    if args and not args[0].startswith("-"):
        data, args = Path(args[0]), args[1:]
    options = options_of(InspectOptions, args, prog)
    if data is None:
        raise Refusal(f"{prog}: which folder of clips?")
    from cosmos_distill.inspection.command import inspect

    with StopFlag() as stop:
        inspect(data, options, stop)
    return OK


def _consolidate(args: list[str]) -> int:
    prog = "cosmos-distill consolidate CHECKPOINT OUT.safetensors"
    paths = [Path(word) for word in takewhile(lambda word: not word.startswith("-"), args)]
    options = options_of(ConsolidateOptions, args[len(paths) :], prog)
    if len(paths) != 2:
        raise Refusal(f"{prog}: name a folder checkpoints/step_... of a training stage and the file to write")
    checkpoint, out = paths
    if reason := blocked(out.parent):
        raise Refusal(f"{out} cannot be written: its folder {reason}: choose another file")
    if not out.parent.is_dir():
        raise Refusal(f"{out} cannot be written: there is no folder {out.parent}: make it, or choose another")
    if os.path.lexists(out) and (out.is_dir() or not options.overwrite):
        raise Refusal(f"{out} exists already: choose another file" + " or --overwrite" * (not out.is_dir()))
    if (checkpoint / "index.json").is_file() and checkpoint.resolve() in out.resolve().parents:
        raise Refusal(f"{out} lies in the checkpoint itself, which is only read: choose another folder")
    from cosmos_distill.run.networks import DTYPES
    from cosmos_distill.train.checkpoint import consolidate

    dtype = None if options.precision is None else DTYPES[options.precision]
    print(consolidate(*paths, role=options.role, weights=options.weights, dtype=dtype))
    return OK


def _encoding(recipe: Recipe) -> tuple[Recipe, str]:
    """A recipe's Encode stages alone, so that nothing is asked for that encoding needs not; or one such stage
    where it has none, and how the name of its run ends."""
    own = {name: stage for name, stage in recipe.stages.items() if isinstance(stage, Encode)}
    with unchecked():
        return dataclasses.replace(recipe, stages=own or {"encode": Encode()}), "" if own else "encoded"


def _parse(argv: Sequence[str], change: Change | None = None) -> Invocation:
    """:func:`parse`; of several ranks, which all find the same, rank 0 says what is wrong."""
    if ranks.is_main():
        return parse(argv, change)
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            return parse(argv, change)
    except (SystemExit, Refusal) as error:
        if not (isinstance(error, SystemExit) and not error.code):
            ranks.wait_for_main()
            print(said.getvalue(), file=sys.stderr)
        raise


def _run(invocation: Invocation) -> int:
    if invocation.options.dry_run:
        return _dry_run(invocation)
    from cosmos_distill.run import planning
    from cosmos_distill.run.runner import run_recipe

    if ranks.is_main() and (memory := planning.device_memory()) is not None:
        only = invocation.options.only
        planning.refuse_what_does_not_fit(invocation.recipe, only, ranks.world(), memory)
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
    from cosmos_distill.run.dry_run import show

    if not ranks.is_main():
        return OK
    show(invocation.recipe, invocation.out, invocation.argv)
    return OK
