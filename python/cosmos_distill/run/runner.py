"""Runs a recipe's stages in order, each in its own folder with its own manifest.

On several ranks all of them run every stage, while rank 0 alone looks at the folder and writes in it.

A stage that is complete and was made by the same configuration from the same inputs is skipped, one
that was interrupted goes on, and one that was made by anything else is refused: nothing is thrown
away silently and nothing stale is used. One that has made nothing yet begins with what is asked for now.
Torch-free at import, for the command line.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import time
import tokenize
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cosmos_distill
from cosmos_distill.config import (
    Encode,
    Evaluate,
    Export,
    Generate,
    KeepClips,
    Parallel,
    Recipe,
    Stage,
    Train,
)
from cosmos_distill.data.encoded_files import missing as missing_shards
from cosmos_distill.data.pair_files import missing as missing_pairs
from cosmos_distill.errors import Refusal
from cosmos_distill.files import sha256, to_json
from cosmos_distill.launch import ranks
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.run import folder, inputs
from cosmos_distill.run.checks import (
    check,
    depends_on,
    needs_teacher,
    projects_text,
    student_files,
    teacher_files,
)
from cosmos_distill.run.lock import locked
from cosmos_distill.run.manifest import (
    MANIFEST,
    File,
    Manifest,
    Output,
    Pairs,
    Shards,
    Student,
    configuration,
    plain,
    results,
    sha256_of_listing,
    sources_sha256,
)
from cosmos_distill.storage import DiskError, publish_json
from cosmos_distill.train.guard import Interrupted, StopFlag

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Interrupted", "Refusal", "Run", "run_recipe", "stage_status", "status"]

_MODULES: dict[type[Stage], str] = {
    Encode: "encode",
    Generate: "generate",
    Train: "train",
    Evaluate: "evaluate",
    Export: "export",
}
Status = Literal["complete", "resume", "new", "mismatch"]


@dataclass(frozen=True)
class Run:
    """What every stage is given beside its own configuration."""

    recipe: Recipe
    out: Path
    """The run folder."""
    outputs: Mapping[str, Output]
    """Of the stages before."""
    stop: StopFlag
    """Says when the run should stop at the next safe point."""
    console: Console
    details: dict[str, Any]
    """What a stage puts here is recorded in its manifest."""

    def student(self, stage: str) -> Path:
        """Weights that a Train stage left behind."""
        output = self.outputs[stage]
        assert isinstance(output, Student)
        return self.out / output.weights.path


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    recipe_file: Path | None = None,
    only: Sequence[str] = (),
    argv: Sequence[str] = (),
    stop: StopFlag | None = None,
    console: Console | None = None,
) -> None:
    """Run the stages of ``recipe`` in the folder ``out``, or go on with what is there.

    Args:
        recipe_file: Its text is kept beside the resolved recipe.
        only: Names of the stages to run; empty runs all.
        argv: The command line, kept in the run folder.
        stop: Looked at in every safe point; a requested stop leaves what is needed to go on.

    Raises:
        Refusal: before any work, when it cannot work, the folder holds another run, or another process
            writes it.
        Interrupted: ``stop`` said so.
    """
    from rich.console import Console

    console, stop = console or Console(quiet=not ranks.is_main()), stop or StopFlag()
    with ExitStack() as held:

        def begin() -> None:
            check(recipe, out, args=argv)
            if unknown := [name for name in only if name not in recipe.stages]:
                raise Refusal(f"--only {' '.join(unknown)}: the stages are {', '.join(recipe.stages)}")
            try:
                out.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(out))
            except OSError as error:
                raise Refusal(f"--out {out} cannot be used ({error})") from error
            inputs.look(recipe)
            try:
                _refuse_other_run(recipe, out)
                _save_recipe(recipe, out, recipe_file, argv)
            except (OSError, DiskError) as error:
                raise Refusal(f"--out {out} cannot be used ({error})") from error

        on_rank_zero(begin)
        outputs: dict[str, Output] = {}
        checked = False
        for name, stage in recipe.stages.items():
            done = on_rank_zero(partial(_done, recipe, name, stage, out, outputs, console))
            if only and name not in only:
                if done is not None:
                    outputs[name] = done
                continue
            if missing := [n for n in depends_on(stage) if n not in outputs]:
                raise Refusal(f"'{name}' needs the output of {', '.join(missing)}: run that stage first")
            if done is not None:
                console.print(f"[bold]{name}[/]  already complete")
                outputs[name] = done
                continue
            if not checked:
                _refuse_misfits(recipe, only)
                checked = True
            outputs[name] = _run_stage(Run(recipe, out, dict(outputs), stop, console, {}), name, stage)
        from cosmos_distill.run import report

        on_rank_zero(partial(report.write, recipe, out, console))


def stage_status(
    recipe: Recipe, name: str, stage: Stage, out: Path, outputs: Mapping[str, Output]
) -> tuple[Status, str]:
    """State of one stage's folder and, for ``mismatch``, the reason in words; for others, a remark if there
    is one.

    Of a stage whose inputs have to be made again only the rest is compared: they may come out as they were.
    """
    found = Manifest.read(out / name)
    if found is None:
        if not folder.leftovers(out / name):
            return "new", ""
        if folder.last_recipe(out) != json.loads(to_json(plain(recipe))):
            return "mismatch", f"it has files, but no legible {MANIFEST} that says what they were made from"
        return "resume", f"its {MANIFEST} is missing or damaged: goes on from its other files"
    if not found.complete and not folder.goes_on_from_files(out / name):
        return "resume", ""
    missing = [n for n in depends_on(stage) if n not in outputs]
    found = dataclasses.replace(found, inputs={k: v for k, v in found.inputs.items() if k not in missing})
    wanted, record = _wanted(recipe, name, stage, outputs)
    reason, remark = found.mismatch(wanted), ""
    if reason is None:
        reason, remark = inputs.change(found, wanted, recipe, stage, out / name, record)
    if reason is not None:
        return "mismatch", reason
    if missing:
        return "resume", f"looked at again after {', '.join(missing)}"
    return ("complete" if found.complete else "resume"), remark


def status(recipe: Recipe, out: Path) -> dict[str, tuple[Status, str]]:
    """State of every stage, without touching anything."""
    outputs: dict[str, Output] = {}
    states = {}
    for name, stage in recipe.stages.items():
        states[name] = stage_status(recipe, name, stage, out, outputs)
        if states[name][0] == "complete":
            found = Manifest.read(out / name)
            assert found is not None and found.outputs is not None
            outputs[name] = found.outputs
    return states


def _run_stage(run: Run, name: str, stage: Stage) -> Output:
    folder = run.out / name
    begin = time.monotonic()

    def start() -> Manifest:
        wanted, record = _wanted(run.recipe, name, stage, run.outputs)
        found = Manifest.read(folder) or wanted
        folder.mkdir(exist_ok=True)
        inputs.keep(folder, record)
        started = dataclasses.replace(wanted, seconds=found.seconds, attempts=found.attempts + 1)
        started.write(folder)
        verb = "goes on" if found.attempts else "starts"
        run.console.print(f"[bold]{name}[/]  {verb} in {folder}")
        return started

    started = on_rank_zero(start)
    output: Output | None = None
    seconds = started.seconds
    try:
        function = _load(stage, run.recipe.parallel)
        output = function(name, stage, dataclasses.replace(run, recipe=_as_read(run, stage)), folder)
    finally:
        # Time spent counts also where the attempt failed, so that the report does not flatter.
        seconds += time.monotonic() - begin
        if ranks.is_main():
            dataclasses.replace(started, seconds=seconds, outputs=output, details=run.details).write(folder)
    run.console.print(f"[bold]{name}[/]  complete after {seconds:.1f} s")
    return output


def _as_read(run: Run, stage: Stage) -> Recipe:
    """The recipe with the shards of an Encode stage in place of its clips, if ``stage`` asks for them."""
    name = getattr(stage, "clips_from", None)
    if name is None:
        return run.recipe
    output = run.outputs[name]
    assert isinstance(output, Shards)
    # What is asked of clips, and the negative prompt, is in them.
    data = dataclasses.replace(
        run.recipe.data,
        negative_prompt="", keep=KeepClips(), cuts=None, buckets=None, sources=(), held_out=None,
        source="shards", root=run.out / output.folder,
    )  # fmt: skip
    return dataclasses.replace(run.recipe, data=data)


def _refuse_misfits(recipe: Recipe, only: Sequence[str]) -> None:
    """Look at the files of networks and tokenizer before the first stage that has work to do, whichever it
    is: a later one may be the first to read them."""
    ranks.lay_out(recipe.parallel)
    from cosmos_distill.run.headers import refuse_misfits

    refuse_misfits(recipe, {name: s for name, s in recipe.stages.items() if not only or name in only})


def _load(stage: Stage, parallel: Parallel) -> Callable[[str, Stage, Run, Path], Output]:
    """The function that runs a stage, and the ranks laid out for it; only now is torch imported."""
    ranks.lay_out(parallel)
    module = importlib.import_module(f"cosmos_distill.stages.{_MODULES[type(stage)]}")
    function: Callable[[str, Stage, Run, Path], Output] = module.run
    return function


def _done(
    recipe: Recipe, name: str, stage: Stage, out: Path, outputs: Mapping[str, Output], console: Console
) -> Output | None:
    state, reason = stage_status(recipe, name, stage, out, outputs)
    if state == "mismatch":
        raise _holds_another(recipe, out, name, reason)
    if reason:
        console.print(f"[bold]{name}[/]  {reason}")
    if state != "complete":
        return None
    found = Manifest.read(out / name)
    assert found is not None and found.outputs is not None
    if lost := _lost(out, name, found.outputs):
        console.print(f"[bold]{name}[/]  {lost}: made again")
        return None
    if inputs.goes_by_names(found):
        wanted, record = _wanted(recipe, name, stage, outputs)
        inputs.keep(out / name, record)
        dataclasses.replace(found, inputs=wanted.inputs).write(out / name)
    return found.outputs


def _refuse_other_run(recipe: Recipe, out: Path) -> None:
    """Look at all stages before the first one runs, so that a mismatch in the last costs nothing."""
    for name, (state, reason) in status(recipe, out).items():
        if state == "mismatch":
            raise _holds_another(recipe, out, name, reason)


def _holds_another(recipe: Recipe, out: Path, name: str, reason: str) -> Refusal:
    made = [name]
    for other, stage in recipe.stages.items():
        if (out / other).exists() and set(depends_on(stage)) & set(made):
            made.append(other)
    folders = " and ".join(filter(None, [", ".join(str(out / n) for n in made[:-1]), str(out / made[-1])]))
    return Refusal(
        f"{out / name} holds another '{name}' ({reason}). Keep it and run elsewhere with --out DIR, "
        f"or delete {folders} to redo {'it' if len(made) == 1 else 'them'}."
    )


def _wanted(
    recipe: Recipe, name: str, stage: Stage, outputs: Mapping[str, Output]
) -> tuple[Manifest, dict[str, Any]]:
    """The manifest that a stage would have to show for its folder to be used, without the inputs that have to
    be made first; and the record of its clips."""
    found, record = inputs.fingerprints(recipe, stage)
    if needs_teacher(stage):
        found["teacher"] = inputs.of_files(teacher_files(recipe))
    if isinstance(stage, Train) and stage.student is not None:
        found["student"] = inputs.of_files(student_files(recipe, name, stage.student))
    if isinstance(stage, Encode) and projects_text(recipe):
        found["text_projection"] = inputs.of_files(teacher_files(recipe))
    for source in depends_on(stage):
        if source in outputs:
            found[source] = _fingerprint(outputs[source])
    manifest = Manifest(
        stage=name,
        configuration=configuration(recipe, stage),
        inputs=found,
        seed=recipe.seed,
        version=cosmos_distill.__version__,
        results=results(recipe),
        sources=sources_sha256(),
    )
    return manifest, record


def _fingerprint(output: Output) -> str:
    return (
        output.sha256
        if isinstance(output, Pairs | Shards)
        else sha256_of_listing([json.dumps(plain(output))])
    )


def _lost(out: Path, name: str, output: Output) -> str:
    """What is missing of a complete stage's output, in words: the stage makes it again from what it has.

    Raises:
        Refusal: a file was changed by hand, which is not overwritten.
    """
    lost = []
    for file in (v for v in (*vars(output).values(), *getattr(output, "parts", ())) if isinstance(v, File)):
        path = out / file.path
        if not path.is_file():
            lost.append(f"{path.name} is missing")
        elif sha256(path) != file.sha256:
            raise Refusal(
                f"{path} was changed after '{name}' completed: restore it, or delete that file, and the same "
                "command makes it again"
            )
    if isinstance(output, Pairs) and (count := missing_pairs(out / output.folder, output.count)):
        lost.append(f"{count} of {output.count} pairs are missing or damaged")
    if isinstance(output, Shards) and (reason := missing_shards(out / output.folder)):
        lost.append(reason)
    return ", ".join(lost)


def _save_recipe(recipe: Recipe, out: Path, recipe_file: Path | None, argv: Sequence[str]) -> None:
    document = {
        "recipe": plain(recipe),
        "argv": list(argv),
        "version": cosmos_distill.__version__,
        "file": None if recipe_file is None else {"name": recipe_file.name, "text": _text(recipe_file)},
    }
    publish_json(out / "recipe.json", document, indent=2)


def _text(source: Path) -> str:
    """A Python file's text, in the encoding that it declares."""
    with tokenize.open(source) as stream:
        return stream.read()
