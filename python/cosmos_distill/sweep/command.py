"""``cosmos-distill sweep``: from the command line to sweep.json and sweep.html."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cosmos_distill.config import Evaluate, Recipe, Train
from cosmos_distill.errors import Refusal
from cosmos_distill.files import read_json
from cosmos_distill.run.checks import check, depends_on
from cosmos_distill.run.folder import blocked
from cosmos_distill.run.manifest import plain
from cosmos_distill.storage import publish, publish_json
from cosmos_distill.sweep import search
from cosmos_distill.sweep.options import SweepOptions
from cosmos_distill.sweep.running import Trial, run_all
from cosmos_distill.sweep.search import Round, Setting

if TYPE_CHECKING:
    from cosmos_distill.sweep.compare import Standing
    from cosmos_distill.train.guard import StopFlag

SCHEMA = 1
DATA, PAGE = "sweep.json", "sweep.html"


def sweep(
    recipe_file: str,
    args: Sequence[str],
    options: SweepOptions,
    parse: Callable[[Sequence[str]], Recipe],
    stop: StopFlag,
    console: Console | None = None,
) -> bool:
    """Run the sweep, or go on with it, and write its data and its page.

    Args:
        args: Options of the recipe, the same for every run.
        parse: Words of a command line -> the recipe that they describe.

    Returns:
        Whether every run has failed.

    Raises:
        Refusal: before any run, when one of the settings, the folder or the metric cannot work.
        Interrupted: ``stop`` said so.
    """
    console = console or Console()
    recipe = parse([recipe_file, *args])
    out = options.out or Path("runs") / Path(recipe_file).stem / "sweep"
    asked = _Sweep(recipe_file, tuple(args), options, parse, out, recipe)
    asked.check()
    settings = search.settings(search.varied(options.vary), options.random, recipe.seed)
    rounds = list(search.rounds(options.rungs, options.seeds))
    # Every setting's recipe is made before the first one runs: a wrong value costs nothing.
    first = [asked.trial(setting, rounds[0]) for setting in settings]
    _require_different(first)
    for trial in first:
        check(trial.recipe, trial.out, args=trial.command)
    said = f"{len(settings)} settings, {len(rounds)} round{'s' * (len(rounds) > 1)}, in {out}"
    console.print(f"[bold]sweep[/]  {said}")
    if options.dry_run:
        for trial in first:
            console.print(f"  {text_of(trial.setting)}  {trial.out.name}")
        return False
    return asked.run(settings, rounds, stop, console)


def _require_different(trials: Sequence[Trial]) -> None:
    """Raises Refusal where two settings make one recipe, whose runs would be compared as if they told
    something: an option that something else overrides, or one value written in two ways."""
    for n, one in enumerate(trials):
        for other in trials[:n]:
            if one.recipe == other.recipe:
                raise Refusal(
                    f"--vary: {text_of(other.setting)} and {text_of(one.setting)} are the same run: name "
                    "each value once, of options that nothing else sets"
                )


def text_of(setting: Setting) -> str:
    """One line for people: the last part of each option's name and its value."""
    return " ".join(f"{option.rsplit('.', 1)[-1].lstrip('-')}={value}" for option, value in setting.items())


class _Sweep:
    """What stays the same for all runs."""

    def __init__(
        self,
        recipe_file: str,
        args: tuple[str, ...],
        options: SweepOptions,
        parse: Callable[[Sequence[str]], Recipe],
        out: Path,
        recipe: Recipe,
    ) -> None:
        self.recipe_file, self.args, self.options, self.parse, self.out = (
            recipe_file,
            args,
            options,
            parse,
            out,
        )
        self.recipe = recipe
        self.trials: list[Trial] = []

    def check(self) -> None:
        """Raises Refusal for what no setting can work with."""
        stages = [stage for stage in self.recipe.stages.values() if isinstance(stage, Evaluate)]
        if not stages:
            raise Refusal(f"{self.recipe_file} has no Evaluate stage: nothing would tell the settings apart")
        if reason := blocked(self.out):
            raise Refusal(f"--out {self.out} {reason}: choose another folder with --out")
        if self.out.is_dir() and not (self.out / DATA).is_file() and any(self.out.iterdir()):
            raise Refusal(
                f"--out {self.out} holds something else than a sweep: choose another folder with --out"
            )
        if (self.out / DATA).is_file() and (other := _other(self.out / DATA, self.description())):
            raise Refusal(f"--out {self.out} holds another sweep ({other}): choose another folder with --out")
        from cosmos_distill.eval.metrics import find

        try:
            find(self.options.metric)
        except ValueError as error:
            raise Refusal(f"--metric: {error}") from error
        columns = {"teacher", "untrained_student", *stages[-1].students}
        if self.options.who not in columns:
            raise Refusal(f"--who {self.options.who}: the recipe compares {', '.join(sorted(columns))}")

    def description(self) -> dict[str, Any]:
        """What two commands have to have in common to go on with each other's runs."""
        return {
            "recipe": self.recipe_file,
            "arguments": list(self.args),
            "metric": self.options.metric,
            "who": self.options.who,
        }

    def trial(self, setting: Setting, round_: Round) -> Trial:
        """The run of one setting; Refusal where its recipe cannot be made."""
        seed = self.recipe.seed + round_.seed
        words = [self.recipe_file, *self.args, *search.options_of(setting), "--seed", str(seed)]
        words += self._evaluation()
        recipe = self.parse(words)
        if round_.divisor > 1:
            for name in self._shortened(recipe, setting):
                stage = recipe.stages[name]
                assert isinstance(stage, Train)
                steps = max(1, stage.trainer.max_steps // round_.divisor)
                words += [f"--stages.{name}.trainer.max-steps", str(steps)]
            recipe = self.parse(words)
        out = self.out / "runs" / search.name_of(setting, round_)
        return Trial(setting, round_, recipe, (*words, "--out", str(out)), out)

    def _evaluation(self) -> list[str]:
        """Settings are chosen on clips for that, where the data have them, by a metric with intervals."""
        words = []
        for name, stage in self.recipe.stages.items():
            if isinstance(stage, Evaluate):
                chosen = stage.metrics or ()
                if self.options.metric not in chosen:
                    words += [f"--stages.{name}.metrics", *chosen, self.options.metric]
                if self.recipe.data.source == "film" and stage.split is None:
                    words += [f"--stages.{name}.split", "validation"]
        return words

    def _shortened(self, recipe: Recipe, setting: Setting) -> list[str]:
        """Training stages that depend on the setting; what comes before them is shared at full length."""
        touched: set[str] = set()
        for name, stage in recipe.stages.items():
            prefix = f"--stages.{name}.".replace("_", "-")
            mine = any(option.replace("_", "-").startswith(prefix) for option in setting)
            if mine or set(depends_on(stage)) & touched:
                touched.add(name)
        elsewhere = any(not option.startswith("--stages.") for option in setting)
        return [n for n, s in recipe.stages.items() if isinstance(s, Train) and (elsewhere or n in touched)]

    def run(
        self, settings: Sequence[Setting], rounds: Sequence[Round], stop: StopFlag, console: Console
    ) -> bool:
        """Round after round, with fewer settings each time."""
        from cosmos_distill.eval.metrics import find
        from cosmos_distill.sweep import compare

        metric = find(self.options.metric)
        standings = [compare.Standing(setting) for setting in settings]
        (self.out / "runs").mkdir(parents=True, exist_ok=True)
        self.write(standings)
        for number, round_ in enumerate(rounds):
            alive = [one for one in standings if one.left_out is None]
            trials = [self.trial(one.setting, round_) for one in alive]
            by_folder = {trial.out: one for trial, one in zip(trials, alive, strict=True)}

            def ended(
                trial: Trial,
                by_folder: dict[Path, Standing] = by_folder,
                round_: Round = round_,
                total: int = len(trials),
                place: int = number + 1,
            ) -> None:
                one = by_folder[trial.out]
                self._take(trial, one, round_)
                self.write(standings)
                score = one.scores.get(round_.seed)
                value = "no score" if score is None or score.value is None else f"{score.value:.4g}"
                done = sum(t.round == round_ for t in self.trials)
                said = trial.error or f"{metric.title} {value}, {trial.seconds:.0f} s"
                where = f"round {place}/{len(rounds)}, {done}/{total}"
                console.print(f"{where}  [bold]{text_of(trial.setting)}[/]  {said}", highlight=False)

            donors = [trial.out for trial in self.trials]
            run_all(trials, donors, self.options.jobs, stop, ended)
            following = rounds[number + 1 : number + 2]
            if following:
                compare.drop(alive, metric, halve=following[0].divisor < round_.divisor)
                self.write(standings)
                if all(one.left_out is not None for one in standings):
                    break
        best = compare.ranked(standings, metric)[0]
        if best.score.value is not None:
            console.print(f"best: {' '.join(search.options_of(best.setting))}", highlight=False)
        console.print(f"sweep: {self.out / PAGE}")
        return best.score.value is None

    def _take(self, trial: Trial, one: Standing, round_: Round) -> None:
        from cosmos_distill.sweep import compare

        self.trials.append(trial)
        if round_.divisor != one.divisor:
            one.scores, one.divisor = {}, round_.divisor
        if trial.error is not None:
            one.errors.append(trial.error)
            return
        try:
            score = compare.read(trial.out, trial.recipe, self.options.who, self.options.metric)
        except (OSError, ValueError, KeyError) as error:
            one.errors.append(f"its scores cannot be read ({error})")
            return
        one.scores[round_.seed] = score

    def write(self, standings: Sequence[Standing]) -> None:
        """sweep.json and sweep.html, as far as the sweep has come."""
        from cosmos_distill.sweep import page

        document = {"schema": SCHEMA, **self.description(), "vary": list(self.options.vary)}
        document |= page.document(standings, self.trials, self.options.metric, self.recipe)
        publish_json(self.out / DATA, document, indent=2)
        publish(self.out / PAGE, page.html(document))


def _other(path: Path, asked: dict[str, Any]) -> str:
    """What a sweep in the folder was made of otherwise; empty where it is the same."""
    try:
        found = read_json(path)
        differing = [key for key, value in plain(asked).items() if found.get(key) != value]
    except (OSError, ValueError, AttributeError) as error:
        return f"{path.name} cannot be read: {error}"
    return ", ".join(f"{key} {found.get(key)!r}" for key in differing)
