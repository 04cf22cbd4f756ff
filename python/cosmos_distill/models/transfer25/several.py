"""Several controls at once: the published networks of one control each, made one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

_ONE = "control.branches.0."


def combine(networks: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The weights of a network whose branch n is that of ``networks[n]``, all in our names and whole.

    Each has one branch, as :func:`cosmos_distill.models.common.weights.load` reads the published files. Their
    bases, which were frozen while the branches were trained, must be equal.

    Raises:
        ValueError: there is none, one has several branches or none, or a base is another.
    """
    if not networks:
        raise ValueError("name at least one network")
    shared = {name: value for name, value in networks[0].items() if not name.startswith("control.")}
    state = dict(shared)
    for n, network in enumerate(networks):
        branch = {name: value for name, value in network.items() if name.startswith("control.")}
        if not branch or not all(name.startswith(_ONE) for name in branch):
            raise ValueError(f"network {n} has not one control branch: give networks of a single control")
        base = {name: value for name, value in network.items() if name not in branch}
        others = [k for k in shared.keys() | base.keys() if not _same(base.get(k), shared.get(k))]
        if others:
            raise ValueError(
                f"network {n} has another base than network 0 ({min(others)}): take those of one release"
            )
        state |= {f"control.branches.{n}.{name.removeprefix(_ONE)}": value for name, value in branch.items()}
    return state


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def balanced(weights: torch.Tensor) -> torch.Tensor:
    """Weights of controls as the published sampler takes them: where they add up to more than one, divided by
    their sum. [branches], or maps [B, branches, T, H/p, W/p], as ``control_weight`` of the network."""
    total = weights.sum(0 if weights.ndim == 1 else 1, keepdim=True)
    return weights / total.clamp_min(1)
