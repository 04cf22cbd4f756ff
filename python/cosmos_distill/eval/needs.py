"""Whether metrics have the networks that they look through; asked before a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cosmos_distill.data import packages
from cosmos_distill.data.errors import DataError
from cosmos_distill.eval.measure import load


def problems(option: str, names: Sequence[str], networks: Mapping[str, Path]) -> Iterator[str]:
    """Why metrics cannot be computed here, one sentence each.

    Args:
        option: The command line's name of what they belong to, ``--stages.evaluate``.
        names: Of the metrics.
        networks: Metric -> file or folder of the network that it looks through.
    """
    try:
        chosen = load(names)
    except ValueError as error:
        yield f"{option}.metrics: {error}."
        return
    for metric, found in chosen.items():
        if found.network and metric not in networks:
            yield f"{option}.metrics {metric} needs a network: {option}.networks {metric} PATH."
        for weights in found.weights:
            try:
                packages.path(weights)
            except DataError as error:
                yield f"{option}.metrics {metric}: {error}."
    for metric, path in networks.items():
        if metric not in chosen or not chosen[metric].network:
            yield f"{option}.networks {metric}: no metric of that name takes a network here."
        elif not path.exists():
            yield f"{option}.networks {metric} {path}: no such file or folder."
