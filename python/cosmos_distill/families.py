"""What a family of networks is, and where families are found. Torch-free.

A family is a folder under :mod:`cosmos_distill.models` whose ``config.py`` declares one ``FAMILY``; it is
found by
being there. A family of somebody else's is made known with :func:`register`, for instance in their recipe.
Nothing but the family's own folder knows its sizes, names and habits: everybody else asks its
:class:`Family`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from cosmos_distill.ranges import Checked

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Checked):
    """Base of the sizes of a network: all that has to be known to build it.

    A subclass says in ``family_name`` whose sizes they are.
    """

    family_name: ClassVar[str]

    @property
    def family(self) -> Family:
        """The family of the network."""
        return family(self.family_name)


class Translation(NamedTuple):
    """Tensor names of a file, understood as far as possible. Every name is in exactly one of the four."""

    ours: dict[str, str]
    """Their name -> ours."""
    carried: dict[str, str]
    """Their name -> the name under which it is written back: tensors that belong to the file and to no
    forward pass."""
    unknown: list[str]
    """No tensors of this family."""
    copies: Mapping[str, str] = MappingProxyType({})
    """Their name -> ours, of tensors that another of the files that belong together holds, too. They must be
    equal there; alone they do not count."""


class Names(Protocol):
    """Tensor names of a family in the files that it is exchanged in, both ways. Torch-free."""

    def from_official(self, names: Sequence[str]) -> Translation:
        """Understand the names of one official file."""

    def to_official(self, names: Iterable[str]) -> dict[str, str]:
        """Our names -> those of the official file. Raises ValueError for a name without one."""

    def in_distilled(self, official: str) -> str:
        """Name of a tensor in the file from which the official inference takes a distilled network, from its
        name in the official file of a teacher."""

    def from_diffusers(self, names: Sequence[str]) -> Translation:
        """Understand the names of one of diffusers' networks."""

    def to_diffusers(self, names: Iterable[str]) -> dict[tuple[str, str], str]:
        """(component of a pipeline, name there) -> our name; what diffusers has no place for is left out."""

    def in_diffusers(self, sizes: Any) -> InDiffusers:
        """What a network of these sizes is there.

        Raises:
            ValueError: there is no pipeline of it, or none of such a network; the message says why.
        """

    def files(self, folder: Path, control: str | None) -> tuple[Path, ...] | None:
        """The files of a published folder that together are the teacher of ``control``; None: not so
        published."""


class InDiffusers(NamedTuple):
    """A pipeline of diffusers."""

    pipeline: str
    """Its class."""
    networks: Mapping[str, tuple[str, Mapping[str, Any]]]
    """Component -> its class and the configuration that this is built from."""


class TextEncoder(NamedTuple):
    """Where the prompt embeddings of a family come from."""

    name: str
    folder: str
    """In a folder of clips, what holds the embeddings."""
    kind: str | None = None
    """Of :mod:`cosmos_distill.text`, the one that the published weights were trained with; None: any."""
    negative_prompt: str = ""
    """The text that its makers' pipeline guides away from where the user names none."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One declared object says what a family is; see the fields."""

    title: str
    """As its makers write it."""
    config: type[NetworkConfig]
    """What its sizes are; it has the name of the family."""
    presets: Mapping[str, NetworkConfig]
    """Sizes by name. The weights that come with the package are named after them."""
    network: Callable[[Any, torch.dtype], nn.Module]
    """network(sizes, dtype): the network, uninitialised, on the current device."""
    names: Names | None = None
    """None: its weights are in no files but our own."""
    give_frames: Callable[[Any, Any, Tensor, Tensor, Tensor], Any] | None = None
    """give_frames(sizes, schedule, mask, clean, times) -> :class:`cosmos_distill.diffusion.Given`: how
    leading frames are shown. ``mask`` is True on given frames, bool [B, 1, T, 1, 1]; ``clean`` their latent
    [B, C, T, H, W]; ``times`` the samples' noise coordinate, [B] or [B, T]. None: it takes none."""
    schedule: type[Any] | None = None
    """Noise coordinate that its networks are trained in: a class of :mod:`cosmos_distill.config`."""
    teacher: Any = None
    """Sampler of many steps, a :class:`cosmos_distill.diffusion.TeacherSampler`, with its count of
    evaluations."""
    tokenizers: tuple[str, ...] = ()
    """Kinds of :class:`cosmos_distill.config.Data` whose latents the published weights are made for."""
    text: TextEncoder | None = None
    """None: it reads no text."""
    weights_help: str = "a .safetensors or .pt file, or a folder of .safetensors"
    """What ``--teacher`` takes."""
    wall_seconds: Mapping[str, float] = field(default_factory=dict)
    """Preset -> seconds in which its recipe is promised to end on two cores."""

    @property
    def name(self) -> str:
        """As in recipes and exports."""
        return self.config.family_name


_registered: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known that is not part of the package; returns it.

    Raises:
        ValueError: one of that name, or a preset of one of its names, is known already and is another.
    """
    if _known().get(family.name, family) is not family:
        raise ValueError(f"there is a family {family.name!r} already: choose another name")
    others = {n for other in _known().values() if other is not family for n in other.presets}
    if taken := sorted(others & family.presets.keys()):
        raise ValueError(f"there is a preset {taken[0]!r} already: choose another name")
    _registered[family.name] = family
    return family


@cache
def _found() -> dict[str, Family]:
    """Those of the package, by name."""
    package = import_module("cosmos_distill.models")
    modules = [
        import_module(f"{package.__name__}.{info.name}.config")
        for info in pkgutil.iter_modules(package.__path__)
        if info.ispkg and info.name != "common"
    ]
    return {module.FAMILY.name: module.FAMILY for module in modules}


def _known() -> dict[str, Family]:
    return _found() | _registered


def families() -> Mapping[str, Family]:
    """All that there are, by name."""
    return _known()


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in _known():
        raise ValueError(f"{name!r} is no family of networks: there are {', '.join(sorted(_known()))}")
    return _known()[name]


def presets() -> dict[str, NetworkConfig]:
    """Every preset of every family, by name."""
    return {name: sizes for one in _known().values() for name, sizes in one.presets.items()}


def generators() -> dict[str, NetworkConfig]:
    """The presets of networks that generate clips, which a schedule tells of noise: not of tokenizers."""
    return {name: sizes for name, sizes in presets().items() if sizes.family.schedule is not None}


def preset(name: str) -> NetworkConfig:
    """The sizes of that name.

    Raises:
        ValueError: there are none.
    """
    known = presets()
    if name not in known:
        raise ValueError(f"{name!r} is not a preset: choose one of {', '.join(generators())}")
    return known[name]


def preset_of(network: NetworkConfig) -> str | None:
    """The name of the preset that has these sizes; None for sizes of one's own."""
    return next((name for name, sizes in network.family.presets.items() if sizes == network), None)


def described(network: NetworkConfig) -> dict[str, Any]:
    """The sizes and whose they are, as JSON knows them: what an export and a manifest say of a network."""
    values = {f.name: getattr(network, f.name) for f in fields(network)}
    return {"family": network.family_name} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def read(said: Any) -> NetworkConfig:
    """The inverse of :func:`described`; earlier versions say the name of a preset.

    Raises:
        ValueError: no such preset or family, or sizes that it cannot have.
    """
    if isinstance(said, str):
        return preset(said)
    if not isinstance(said, Mapping) or not isinstance(said.get("family"), str):
        raise ValueError(f"{str(said)[:100]!r} is no description of a network")
    cls = family(said["family"]).config
    known = {f.name for f in fields(cls)}
    values = {name: value for name, value in said.items() if name != "family"}
    if unknown := values.keys() - known:
        raise ValueError(f"unknown: {', '.join(map(str, sorted(unknown)))[:100]!r}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def title(network: NetworkConfig) -> str:
    """The name of the preset, or of the family with those sizes that are not its defaults."""
    named = preset_of(network)
    return named if named is not None else f"{network.family.name} of your own sizes"
