"""Reading and writing weights: our files, the official ones of every family, and diffusers' networks.

No pickle is executed (:mod:`cosmos_distill.arrays.torch_files`). Files are mapped, not
read, so a load needs the network and one tensor, not the network twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from cosmos_distill.arrays.lazy import Value, made
from cosmos_distill.families import Family, Translation, families, preset, presets
from cosmos_distill.models.common import lora
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.models.common.files import State, values, write_safetensors
from cosmos_distill.models.common.names import TRANSFORMER
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.parts import parts_of

Values = dict[str, Value]
_STEERING = re.compile(r"(control\.(?:branches\.\d+\.)?blocks\.\d+)\.")
"""A name in a block of a control branch, or of one of several."""
Source = str | os.PathLike[str] | tuple[str | os.PathLike[str], ...]
"""One file or folder, or several: base and control in either order, of several controls each in the order of
the network's branches, and low-rank adapters to merge (:mod:`cosmos_distill.models.common.lora`)."""


def load(source: Source, *, verify: bool = True, average: bool = True) -> tuple[State, State]:
    """Read weights of any known format. Returns (tensors in our names, carried).

    Known: our own files, and what the families say of official ones and of diffusers' networks
    (:class:`cosmos_distill.families.Names`). ``.safetensors``, ``.pt`` / ``.pth``, a folder of safetensors
    (sharded: with its index), of torch's distributed checkpoints, a diffusers pipeline, a hub's cache; under
    the names of DDP, FSDP and torch.compile; in 8 bits with scales. Of a file with a network and its
    ``average``, that one, or the network.

    ``carried`` holds tensors that belong to official files but to no forward pass (``logvar.*``,
    ``pos_embedder.*``, the control branch's ``final_layer.*``, ``accum_*``, ``_extra_state``), named as in
    the official (merged) file, for :func:`save_official` to write back. Values are not looked at:
    tensors are mapped from disk and read when used, all of them at once only where ``verify`` finds a
    checksum to compare them with.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, a pickle that asks for code, or tensors no known format has.
    """
    state, carried = _load(source, verify=verify, average=average)
    return _all_made(state), _all_made(carried)


def _is_branch(found: Values) -> bool:
    """Whether a file holds one control branch and nothing else."""
    return bool(found) and all(
        name.startswith("control.") and not name.startswith("control.branches.") for name in found
    )


def _in_branch(name: str, branch: int) -> str:
    """The name of a tensor of a network's only control branch in one with several."""
    if not name.startswith("control."):
        return name
    return f"control.branches.{branch}.{name.removeprefix('control.')}"


def _all_made(some: Values) -> State:
    return {name: made(value) for name, value in some.items()}


def _load(source: Source, *, verify: bool = True, average: bool = True) -> tuple[Values, Values]:
    """:func:`load`, with what has to be made left to whoever needs it: one tensor at a time, and a large
    network is never held twice."""
    sources = source if isinstance(source, tuple) else (source,)
    state: Values = {}
    carried: Values = {}
    copies: list[tuple[Path, str, Value]] = []
    adapters: list[tuple[Path, Values]] = []
    branches = 0
    for path in map(Path, sources):
        tensors = values(path, verify=verify, average=average)
        if lora.is_adapter(tensors):
            adapters.append((path, tensors))
            continue
        found, extra, more = _to_ours(tensors, path)
        if _is_branch(found):
            if branches == 1:  # the first one is no network's only one
                state = {_in_branch(name, 0): value for name, value in state.items()}
            found = (
                {_in_branch(name, branches): value for name, value in found.items()} if branches else found
            )
            branches += 1
        if twice := found.keys() & state.keys():
            raise ValueError(
                f"{_listed(twice)} come from both of {', '.join(map(str, sources))}: "
                "pass one base and one control file, or a merged file alone"
            )
        state |= found
        carried |= extra
        copies += [(path, ours, value) for ours, value in more.items()]
    for path, ours, value in copies if verify else ():
        if ours in state and not torch.equal(made(state[ours]), made(value)):
            raise ValueError(
                f"{path} and {_said(source)} differ in {ours}, which they share: they do not go together"
            )
    for path, tensors in adapters:
        state = lora.merged(state, tensors, path, _understand)
    return state, carried


def some(source: Source, names: Iterable[str]) -> list[torch.Tensor]:
    """The tensors of these names, as :func:`load` gives them; of a large network nothing else is made.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or one without them.
    """
    state, wanted = _load(source, verify=False)[0], list(names)
    if missing := [name for name in wanted if name not in state]:
        raise ValueError(f"{_said(source)} has no {_listed(set(missing))}")
    return [made(state[name]) for name in wanted]


def load_into(network: nn.Module, source: Source) -> State:
    """Fill ``network`` from ``source``, cast to its dtype. Returns ``carried``.

    Build it with ``seed=None`` to save the time of drawing weights that are overwritten here. Every
    tensor-parallel rank takes its own slice. The network is untouched if names or shapes do not fit.

    Raises:
        ValueError: missing, unexpected or wrongly shaped tensors, all listed; or a non-finite tensor
            (the network is then partly overwritten).
    """
    state, unmade = _load(source)
    carried = _all_made(unmade)
    _refuse_others(network, state, source)
    parts, group = parts_of(network), groups.tensor_group()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            value = made(state.pop(name))
            if (dim := parts[name].split) is not None:
                value = value.chunk(group.size(), dim=dim)[group.rank()]
            parameter.copy_(value)
            _require_finite(
                name, parameter, f"{_said(source)} is damaged, or too large for {parameter.dtype}"
            )
    return carried


def check(network: nn.Module, source: Source) -> None:
    """Compare ``source`` with ``network``, which may lie on the meta device, by what its headers say: names,
    shapes and types. No value is read, so that it costs milliseconds at any size.

    Collective under pipeline parallelism, like :func:`load_into`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or missing, unexpected or wrongly shaped tensors, all listed.
    """
    _refuse_others(network, _load(source, verify=False)[0], source)


def _refuse_others(network: nn.Module, state: Values, source: Source) -> None:
    """Raises ValueError unless ``state`` has the parameters of ``network``, whole, and no others."""
    parameters = dict(network.named_parameters())
    parts = parts_of(network)
    group = groups.tensor_group()
    problems = []
    missing = parameters.keys() - state.keys()
    whole_branch = bool(missing) and all(name.startswith("control.") for name in missing)
    whole_branch = whole_branch and not any(name.startswith("control.") for name in state)
    if missing:
        advice = " (a base alone: pass the pair (base, control), or a merged file)" if whole_branch else ""
        problems.append(f"missing: {_listed(missing)}{advice}")
    if unexpected := state.keys() - _names(parameters):
        problems.append(f"unexpected: {_listed(unexpected)}")
    wrong = []
    for name in sorted(parameters.keys() & state.keys()):
        shape, value = list(parameters[name].shape), state[name]
        if (dim := parts[name].split) is not None:
            shape[dim] *= group.size()
        if list(value.shape) != shape:
            wrong.append(f"{name} is {list(value.shape)}, not {shape}")
        elif not value.is_floating_point():
            wrong.append(f"{name} is {value.dtype}, not floating point")
    if wrong:
        problems.append(f"wrong: {_listed(wrong)}")
    if problems:
        raise ValueError(
            f"{_said(source)} does not fit this network. " + "; ".join(problems) + "."
            + f" {_fitting(state)}." * (not whole_branch)
        )  # fmt: skip


def _fitting(state: Values) -> str:
    """What the network of ``state`` is, and which presets have its sizes."""
    patch, blocks = state.get("base.patch_embed.proj.weight"), _blocks(state)
    if patch is None or not blocks:
        return "Use the preset (scale) these weights were made for, or weights of this one"
    width, steering = patch.shape[0], len({m[1] for m in map(_STEERING.match, state) if m})
    said = f"The file has {blocks} blocks of width {width}" + f" and {steering} of control" * bool(steering)
    sizes = [
        name
        for name, config in presets().items()
        if isinstance(config, DiTConfig) and (config.width, config.blocks) == (width, blocks)
        and (config.leading_blocks > 0 or config.controls > 0) == bool(steering)
    ]  # fmt: skip
    sizes = _closest(sizes, state)
    if not sizes:
        return f"{said}, as no preset has: say so with --network.width, --network.blocks and the like"
    return f"{said}: that is {' or '.join(f'--network {name}' for name in sizes)}"


def _closest(names: list[str], state: Values) -> list[str]:
    """Of these presets those whose networks differ in the fewest tensors, by name and shape: networks of one
    width have heads of several sizes, and belong to several families."""
    if len(names) < 2 or groups.layout().model > 1:  # of a share of the network, shapes say less
        return names
    have = {name: tuple(value.shape) for name, value in state.items()}
    differ = {}
    for name in names:
        config = preset(name)
        with torch.device("meta"):
            network = config.family.network(config, torch.float32)
        wanted = {key: tuple(value.shape) for key, value in network.named_parameters()}
        differ[name] = len(wanted.items() ^ have.items())
    least = min(differ.values())
    return [name for name in names if differ[name] == least]


def _blocks(state: Values) -> int:
    found = {name.split(".")[2] for name in state if name.startswith("base.blocks.")}
    return len(found)


def _said(source: Source) -> str:
    return " with ".join(map(str, source if isinstance(source, tuple) else (source,)))


def save(network: nn.Module, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
    """Write ``network`` in our names as safetensors, whole, in ``dtype`` (default: its own).

    Collective under tensor parallelism: every rank calls it, rank 0 writes. The file appears complete or
    not at all.
    """
    write_safetensors(_whole(network, dtype), Path(path), "cosmos-distill")


def save_official(
    network: nn.Module,
    path: str | os.PathLike[str],
    carried: Mapping[str, torch.Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write ``network`` under its official names as safetensors: the merged Transfer1 file
    (``base_model.net.*`` and ``net.*``), or Predict2.5's (``net.*``).

    ``carried``, from :func:`load`, is written back unchanged. Collective like :func:`save`.
    """
    family: Family = network.family  # type: ignore[assignment]
    state = _whole(network, dtype)
    write_safetensors(to_official(state, family, carried), Path(path), f"cosmos-{family.name}")


def to_official(
    state: Mapping[str, torch.Tensor],
    family: Family,
    carried: Mapping[str, torch.Tensor] | None = None,
    *,
    distilled: bool = False,
) -> State:
    """``state`` (our names, whole) in the names of the family's official file, with ``carried`` beside it.

    Args:
        distilled: In the names under which the official inference looks for a distilled network, which are
            others than a teacher's in Transfer1.

    Raises:
        ValueError: ``carried`` holds a tensor that the network has itself, or the family has no official
            files.
    """
    if family.names is None:
        raise ValueError(f"{family.title} has no official names")
    official = {theirs: state[ours] for ours, theirs in family.names.to_official(state).items()}
    if clash := official.keys() & (carried or {}).keys():
        raise ValueError(f"carried tensors would overwrite weights: {_listed(clash)}")
    official |= dict(carried or {})
    if distilled:
        official = {family.names.in_distilled(name): value for name, value in official.items()}
    return official


def to_pipeline(state: Mapping[str, torch.Tensor], family: Family) -> dict[str, State]:
    """The networks of a pipeline of diffusers that ``state`` (our names, whole) makes, by component.

    Raises:
        ValueError: the family has none there, or none of these sizes.
    """
    if family.names is None:
        raise ValueError(f"{family.title} is no network of diffusers")
    components: dict[str, State] = {}
    for (component, theirs), ours in family.names.to_diffusers(state).items():
        components.setdefault(component, {})[theirs] = state[ours]
    return components


def to_diffusers(state: Mapping[str, torch.Tensor]) -> State:
    """The base tensors of ``state`` (our names) as diffusers' CosmosTransformer3DModel; the control branch is
    left out.

    Raises:
        ValueError: a tensor of the base that diffusers has no name for.
    """
    found = {name: TRANSFORMER.theirs(name) for name in state if not name.startswith("control.")}
    if nameless := [name for name, theirs in found.items() if theirs is None]:
        raise ValueError(f"{_listed(nameless)} has no name in diffusers, which knows the base network only")
    return {theirs: state[name] for name, theirs in found.items() if theirs is not None}


def from_diffusers(state: Mapping[str, torch.Tensor]) -> State:
    """The inverse of :func:`to_diffusers`."""
    found = {name: TRANSFORMER.ours(name) for name in state}
    if unknown := [name for name, ours in found.items() if ours is None]:
        raise ValueError(f"not tensors of a Cosmos transformer in diffusers: {_listed(unknown)}")
    return {ours: state[name] for name, ours in found.items() if ours is not None}


def _listed(items: Iterable[str], most: int = 20) -> str:
    items = sorted(items)
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _names(parameters: Iterable[str]) -> set[str]:
    """Names of the whole network, of which a pipeline rank has some."""
    group = groups.pipeline_group()
    if group.size() == 1:
        return set(parameters)
    found: list[list[str]] = [[] for _ in range(group.size())]
    dist.all_gather_object(found, list(parameters), group=group)
    return {name for names in found for name in names}


def _whole(network: nn.Module, dtype: torch.dtype | None) -> State:
    """The network's tensors on the CPU, gathered over the tensor-parallel group."""
    if groups.pipeline_group().size() > 1:
        raise ValueError("a pipeline rank has a part of the network: consolidate a checkpoint instead")
    parts = parts_of(network)
    group = groups.tensor_group()
    state: State = {}
    for name, parameter in network.named_parameters():
        value = parameter.detach()
        if (dim := parts[name].split) is not None and group.size() > 1:
            shares = [torch.empty_like(value) for _ in range(group.size())]
            dist.all_gather(shares, value.contiguous(), group=group)
            value = torch.cat(shares, dim=dim)
        value = value.to("cpu", dtype or value.dtype).contiguous()
        _require_finite(name, value, "refusing to save it")
        state[name] = value
    return state


def _require_finite(name: str, value: torch.Tensor, why: str) -> None:
    # min and max carry every NaN and infinity and, unlike isfinite, need no tensor of their own.
    if value.numel() and not all(bool(torch.isfinite(x)) for x in torch.aminmax(value)):
        raise ValueError(f"{name} is not finite ({why})")


def _to_ours(tensors: Values, path: Path) -> tuple[Values, Values, Values]:
    """(our names, carried, copies) for the tensors of one file, whatever its format."""
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    if all(name.startswith(("base.", "control.")) for name in tensors):
        return tensors, {}, {}
    found = _understand(list(tensors))
    if found.unknown or not found.ours:
        titles = ", ".join(family.title for family in families().values() if family.names is not None)
        raise ValueError(
            f"{path} is not a {titles}, diffusers or cosmos-distill network; "
            f"unexpected: {_listed(found.unknown)}. Pass the transformer's weights."
        )
    return (
        {ours: tensors[theirs] for theirs, ours in found.ours.items()},
        {written: tensors[theirs] for theirs, written in found.carried.items()},
        {ours: tensors[theirs] for theirs, ours in found.copies.items()},
    )


def _understand(names: list[str]) -> Translation:
    """What the family says of a file's names that knows most of them. Families that share a network say the
    same of it."""
    known = [family.names for family in families().values() if family.names is not None]
    read = [n.from_official(names) for n in known] + [n.from_diffusers(names) for n in known]
    return min(read, key=lambda found: len(found.unknown))
