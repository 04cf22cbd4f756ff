"""Low-rank adapters (LoRA, arXiv 2106.09685) in peft's and diffusers' files, merged into the weights they
belong to: W + scale B A, with scale = alpha / r, or alpha / sqrt(r) where the file says ``use_rslora``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from cosmos_distill.arrays.lazy import Lazy, Value, made
from cosmos_distill.families import Translation
from cosmos_distill.files import read_json

CONFIG = "adapter_config.json"
_PAIR = re.compile(
    r"(?:base_model\.model\.|transformer\.|diffusion_model\.)?(?P<module>.+)\.lora_(?P<side>A|B|down|up)"
    r"(?:\.\w+)?\.weight"
)
_ALPHA = re.compile(r"(?:base_model\.model\.|transformer\.|diffusion_model\.)?(?P<module>.+)\.alpha")
_DIFFUSERS = "lora_adapter_metadata"
"""Key of a safetensors header under which diffusers keeps the configuration."""
_MARK = "blocks.0.self_attn.q_proj.weight"
"""By which Predict2.5's official names are known, though the adapter may leave that module alone."""


class Pair(NamedTuple):
    """The two factors of one module's update."""

    down: Value
    """A, [r, in]."""
    up: Value
    """B, [out, r]."""


def is_adapter(names: Iterable[str]) -> bool:
    """Whether a file's tensors are those of an adapter."""
    return any(".lora_" in name for name in names)


def merged(
    state: Mapping[str, Value],
    adapter: Mapping[str, Value],
    path: Path,
    understand: Callable[[list[str]], Translation],
) -> dict[str, Value]:
    """``state`` with the updates of ``adapter`` added to the weights that they name. Each weight is made when
    it is needed, in fp32 (fp64 for fp64), and then rounded to its own type.

    Args:
        state: A network's tensors in our names.
        adapter: Tensors of the adapter's file, in its names.
        path: The file, or the folder that holds it.
        understand: Names of a file -> ours.

    Raises:
        ValueError: tensors that are no low-rank pairs of matrices, a module that the network has not, sizes
            that do not fit, or nothing that says the scale.
    """
    pairs, alphas = _pairs(adapter, path)
    names = [f"{module}.weight" for module in pairs]
    ours = understand([*names, _MARK]).ours
    if unknown := sorted(name for name in names if ours.get(name) not in state):
        more = " and more" if len(unknown) > 5 else ""
        raise ValueError(
            f"{path} adapts {', '.join(unknown[:5])}{more}, which this network has not: it was "
            "made for another"
        )
    scale = _scales(path, pairs, alphas)
    found = dict(state)
    for module, pair in pairs.items():
        name = ours[f"{module}.weight"]
        weight = state[name]
        (out, rank), (also_rank, inner) = pair.up.shape, pair.down.shape
        if rank != also_rank or tuple(weight.shape) != (out, inner):
            raise ValueError(
                f"{path}: {module} is {list(pair.up.shape)} times {list(pair.down.shape)}, which does not "
                f"fit {list(weight.shape)}"
            )
        found[name] = Lazy(weight.shape, weight.dtype, partial(_sum, weight, pair, scale[module]))
    return found


def _sum(weight: Value, pair: Pair, scale: float) -> torch.Tensor:
    value = made(weight)
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    update = made(pair.up).to(exact) @ made(pair.down).to(exact)
    return (value.to(exact) + scale * update).to(value.dtype)


def _pairs(adapter: Mapping[str, Value], path: Path) -> tuple[dict[str, Pair], dict[str, Value]]:
    sides: dict[str, dict[str, Value]] = {}
    alphas: dict[str, Value] = {}
    others = []
    for name, value in adapter.items():
        if match := _PAIR.fullmatch(name):
            side = {"down": "A", "up": "B"}.get(match["side"], match["side"])
            sides.setdefault(match["module"], {})[side] = value
        elif match := _ALPHA.fullmatch(name):
            alphas[match["module"]] = value
        else:
            others.append(name)
    halves = [module for module, both in sides.items() if set(both) != {"A", "B"}]
    flat = [m for m, both in sides.items() if any(len(value.shape) != 2 for value in both.values())]
    if wrong := others or halves or flat:
        raise ValueError(
            f"{path} holds {', '.join(sorted(wrong)[:5])}, which is no pair of low-rank matrices: merge it "
            "with the library that wrote it"
        )
    return {module: Pair(both["A"], both["B"]) for module, both in sides.items()}, alphas


def _scales(path: Path, pairs: Mapping[str, Pair], alphas: Mapping[str, Value]) -> dict[str, float]:
    said = _configuration(path)
    if said is None and not alphas:
        raise ValueError(
            f"{path} does not say its scale: put the {CONFIG} that peft wrote beside it (lora_alpha and r)"
        )
    said = said or {}
    if special := [key for key in ("rank_pattern", "alpha_pattern", "use_dora") if said.get(key)]:
        raise ValueError(
            f"{path}: its {CONFIG} has {special[0]}, which is not merged here: merge it with peft"
        )
    found = {}
    for module, pair in pairs.items():
        rank = pair.down.shape[0]
        alpha = (
            made(alphas[module]).item() if module in alphas else said.get("lora_alpha", said.get("r", rank))
        )
        if not isinstance(alpha, int | float) or not math.isfinite(alpha) or rank < 1:
            raise ValueError(f"{path}: the scale of {module} is {alpha!r} / {rank}, which is no number")
        found[module] = alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)
    return found


def _configuration(path: Path) -> dict[str, Any] | None:
    """What peft's configuration beside the file says, or the file's own header."""
    folder = path if path.is_dir() else path.parent
    if (folder / CONFIG).is_file():
        said = read_json(folder / CONFIG)
    else:
        files = sorted(folder.glob("*.safetensors")) if path.is_dir() else [path]
        said = _header(files[0]) if len(files) == 1 and files[0].suffix == ".safetensors" else None
    if said is not None and not isinstance(said, dict):
        raise ValueError(f"{path} is damaged: its configuration is no object")
    return said


def _header(file: Path) -> Any:
    with safe_open(file, framework="pt") as opened:
        text = (opened.metadata() or {}).get(_DIFFUSERS)
    if text is None:
        return None
    try:
        said = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is damaged (its {_DIFFUSERS} is not JSON: {error})") from error
    # Under the name of the network that is adapted, as in "transformer.lora_alpha".
    return {key.rsplit(".", 1)[-1]: value for key, value in said.items()} if isinstance(said, dict) else said
