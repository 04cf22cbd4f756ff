"""What a sweep tries: varied options, the settings they span, and in which rounds they run. Torch-free."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from random import Random

from cosmos_distill.errors import Refusal

Setting = Mapping[str, str]
"""Option of the command line -> its value."""

_SET = {
    "--seed": "--seeds N repeats every setting with N seeds",
    "--out": "every setting has a folder of its own below --out",
    "--help": "it is no value of a recipe",
    "--dry-run": "it is no value of a recipe",
}
"""Options that the sweep itself gives its runs, or none of them, and what to do instead."""


@dataclass(frozen=True)
class Between:
    """Numbers to draw from, ends included."""

    low: float
    high: float
    whole: bool

    def draw(self, random: Random) -> str:
        """One of them, as text: evenly, or evenly in its logarithm where it spans more than a decade."""
        if self.low > 0 and self.high > 10 * self.low:
            value = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = random.uniform(self.low, self.high)
        return str(round(value)) if self.whole else f"{value:.3g}"


@dataclass(frozen=True)
class Varied:
    """One option and what it takes."""

    option: str
    """With its two hyphens."""
    values: tuple[str, ...] | Between


def varied(texts: Sequence[str]) -> list[Varied]:
    """Understand ``OPTION=VALUE,VALUE`` and ``OPTION=LOW..HIGH``; a value that holds a comma stands in
    quotation marks.

    Raises:
        Refusal: one is not of that form, an option is named twice, or it is one that a sweep sets.
    """
    found: list[Varied] = []
    for text in texts:
        name, equals, rest = text.partition("=")
        option = "--" + name.strip().lstrip("-").replace("_", "-")
        if not equals or option == "--" or not rest.strip():
            raise Refusal(f"--vary {text}: write OPTION=VALUE,VALUE or OPTION=LOW..HIGH")
        if option in _SET:
            raise Refusal(f"--vary {text}: {_SET[option]}")
        if option in (v.option for v in found):
            raise Refusal(f"--vary {text}: {option} is varied twice: name all its values at once")
        found.append(Varied(option, _between(rest) or _values(text, rest)))
    return found


def _between(text: str) -> Between | None:
    low, dots, high = text.partition("..")
    try:
        ends = float(low), float(high)
    except ValueError:
        return None
    if not dots or not math.isfinite(sum(ends)):
        return None
    if ends[0] >= ends[1]:
        raise Refusal(f"--vary ...={text}: {low} is not below {high}")
    return Between(*ends, whole=low.strip().isdigit() and high.strip().isdigit())


def _values(text: str, rest: str) -> tuple[str, ...]:
    values = tuple(value.strip() for value in next(csv.reader([rest], skipinitialspace=True)))
    if "" in values:
        raise Refusal(f"--vary {text}: one of the values is empty")
    return tuple(dict.fromkeys(values))


def settings(options: Sequence[Varied], random: int | None, seed: int = 0) -> list[Setting]:
    """All combinations, or ``random`` of them drawn with ``seed``: none twice.

    Raises:
        Refusal: nothing is varied, or a range is to be run in full.
    """
    if not options:
        raise Refusal("a sweep varies something: --vary OPTION=VALUE,VALUE")
    for one in options:
        if random is None and isinstance(one.values, Between):
            raise Refusal(f"--vary {one.option[2:]}=LOW..HIGH is drawn from: say how often with --random N")
    if random is None:
        values = [one.values for one in options if not isinstance(one.values, Between)]
        return [dict(zip((v.option for v in options), some, strict=True)) for some in product(*values)]
    generator = Random(f"sweep {seed}")
    found: dict[tuple[tuple[str, str], ...], Setting] = {}
    for _ in range(100 * random):  # there may be fewer than are asked for
        drawn = {
            v.option: v.values.draw(generator)
            if isinstance(v.values, Between)
            else generator.choice(v.values)
            for v in options
        }
        found[tuple(drawn.items())] = drawn
        if len(found) == random:
            break
    return list(found.values())


@dataclass(frozen=True)
class Round:
    """Settings that are compared with each other at one point of the sweep."""

    divisor: int
    """Of the steps of training."""
    seed: int
    """Counted from the recipe's own, 0."""


def rounds(text: str, seeds: int) -> Iterator[Round]:
    """In order: the first seed at every rung, then the other seeds at full length.

    Args:
        text: The rungs, divisors of the steps of training, ``4,2,1``.

    Raises:
        Refusal: they do not fall to 1.
    """
    rungs = [int(word) if word.strip().isdecimal() else 0 for word in text.split(",")]
    if rungs[-1] != 1 or any(a <= b for a, b in pairwise(rungs)):
        raise Refusal(f"--rungs {text}: divisors of the steps that fall to 1, for example 4,2,1")
    yield from (Round(divisor, 0) for divisor in rungs)
    yield from (Round(1, seed) for seed in range(1, seeds))


def options_of(setting: Setting) -> list[str]:
    """As words of a command line."""
    return [word for option, value in setting.items() for word in (option, *value.split())]


def name_of(setting: Setting, round_: Round) -> str:
    """Of a run's folder: the same for the same settings, whatever else is tried."""
    text = "\n".join(f"{option}={value}" for option, value in sorted(setting.items()))
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    part = f"-{round_.divisor}th" if round_.divisor > 1 else ""
    return f"{digest}-seed{round_.seed}{part}"
