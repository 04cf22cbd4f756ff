"""Networks: modules made of :mod:`~cosmos_distill.ops` and :mod:`~cosmos_distill.parallel`, a folder for each
family (:mod:`cosmos_distill.families`) and ``common`` for what several have."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch

    from cosmos_distill.models.common.config import DiTConfig
    from cosmos_distill.models.common.network import ControlledDiT


def build(
    config: DiTConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int | None = 0,
) -> ControlledDiT:
    """A network on ``device`` in ``dtype`` (default fp32): its family says how it is made.

    ``seed`` keys the initial weights by tensor name, so that they are the same in every parallel
    layout; ``None`` leaves them uninitialised, for loading a checkpoint or for the meta device.
    """
    import torch

    from cosmos_distill.models.common.init import initialize

    with torch.device(device):
        network = cast("ControlledDiT", config.family.network(config, dtype or torch.float32))
    if seed is not None:
        initialize(network, seed)
    return network
