"""Tensor names in the official files of Cosmos-Transfer2.5, and in diffusers. Torch-free.

One official file holds Predict2.5's network and the control blocks, under ``net.``. A network with several
branches numbers them. diffusers has the network as CosmosTransformer3DModel and one branch, with copies of
the embeddings that both read, as CosmosControlNetModel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_distill.families import InDiffusers, Translation
from cosmos_distill.models.common.names import (
    EMBEDDINGS_IN_DIFFUSERS,
    TRANSFORMER,
    Row,
    Table,
    block_in_diffusers,
    common_configuration,
    transformer_configuration,
    understood,
)
from cosmos_distill.models.predict25.names import BASE, PREFIX, Predict25Names, block, prefix_of

if TYPE_CHECKING:
    from cosmos_distill.models.transfer25.config import Transfer25Config

_PROJECTIONS = ("weight", "bias")


def _control(ours: str, embedder: str, blocks: str) -> list[Row]:
    """A branch's tensors."""
    return [
        (f"{ours}.hint_embed.proj.weight", f"{embedder}.proj.1.weight"),
        *((f"{ours}.before.{x}", f"{blocks}.0.before_proj.{x}") for x in _PROJECTIONS),
        *((f"{ours}.after.{{i}}.{x}", f"{blocks}.{{i}}.after_proj.{x}") for x in _PROJECTIONS),
        *block(f"{ours}.blocks.{{i}}", f"{blocks}.{{i}}"),
    ]


_ONE = Table([*BASE, *_control("control.branches.0", "control_embedder", "control_blocks")])
_SEVERAL = Table([*BASE, *_control("control.branches.{j}", "control_embedder.{j}", "control_blocks_{j}")])
_BRANCH = "control.branches.0"
CONTROLNET = Table(
    [
        (f"{_BRANCH}.hint_embed.proj.weight", "patch_embed.proj.weight"),
        *((f"{_BRANCH}.before.{x}", f"control_blocks.0.before_proj.{x}") for x in _PROJECTIONS),
        *((f"{_BRANCH}.after.{{i}}.{x}", f"control_blocks.{{i}}.after_proj.{x}") for x in _PROJECTIONS),
        *block_in_diffusers(f"{_BRANCH}.blocks.{{i}}", "control_blocks.{i}"),
    ]
)
"""The branch as CosmosControlNetModel."""
SHARED = Table([("base.patch_embed.proj.weight", "patch_embed_base.proj.weight"), *EMBEDDINGS_IN_DIFFUSERS])
"""Copies of the base's in it."""


class Transfer25Names(Predict25Names):
    """Cosmos-Transfer2.5's."""

    title = "Transfer2.5"

    def from_official(self, names: Sequence[str]) -> Translation:
        """Understand the names of one official file, whatever number of branches it has."""
        prefix = prefix_of(names)
        if prefix is None:
            return Translation({}, {}, list(names))
        several = any(name.startswith(f"{prefix}control_embedder.0.") for name in names)
        return self.below(prefix, names, _SEVERAL if several else _ONE)

    def to_official(self, names: Iterable[str]) -> dict[str, str]:
        """Our names -> those of the official file."""
        names = list(names)
        several = any(name.startswith("control.branches.1.") for name in names)
        return {name: PREFIX + self._theirs(name, _SEVERAL if several else _ONE) for name in names}

    def from_diffusers(self, names: Sequence[str]) -> Translation:
        """Understand the names of CosmosTransformer3DModel or of CosmosControlNetModel."""
        if not any(name.startswith("control_blocks.") for name in names):
            return super().from_diffusers(names)
        copies = {name: ours for name in names if (ours := SHARED.ours(name)) is not None}
        found = understood((n for n in names if n not in copies), CONTROLNET.ours, lambda name: None)
        return found._replace(copies=copies)

    def to_diffusers(self, names: Iterable[str]) -> dict[tuple[str, str], str]:
        """The base as the pipeline's ``transformer``, the branch with what it shares as its ``controlnet``.

        Raises:
            ValueError: several branches, of which diffusers knows one.
        """
        names = list(names)
        if any(name.startswith("control.branches.1.") for name in names):
            raise ValueError("diffusers knows networks with one control, and this one has several")
        tables = (("transformer", TRANSFORMER), ("controlnet", CONTROLNET), ("controlnet", SHARED))
        return {
            (component, theirs): name
            for component, table in tables
            for name in names
            if (theirs := table.theirs(name)) is not None
        }

    def in_diffusers(self, sizes: Transfer25Config) -> InDiffusers:  # type: ignore[override]
        """The base and the branch."""
        if sizes.branches > 1:
            raise ValueError(f"diffusers knows networks with one control, and this one has {sizes.branches}")
        shown = sizes.latent_channels + 2  # the latent, the mask of given frames and that of padding
        controlnet = {
            "n_controlnet_blocks": len(range(0, sizes.blocks, sizes.control_every)),
            "in_channels": sizes.hint_channels + 2,
            "latent_channels": shown,
            "model_channels": sizes.width,
            **common_configuration(sizes),
        }
        transformer = transformer_configuration(sizes) | {"controlnet_block_every_n": sizes.control_every}
        networks = {
            "transformer": ("CosmosTransformer3DModel", transformer),
            "controlnet": ("CosmosControlNetModel", controlnet),
        }
        return InDiffusers("Cosmos2_5_TransferPipeline", networks)

    def files(self, folder: Path, control: str | None) -> tuple[Path, ...] | None:
        """Of a pipeline folder of diffusers, the two networks."""
        parts = folder / "transformer", folder / "controlnet"
        return parts if all(part.is_dir() for part in parts) else None
