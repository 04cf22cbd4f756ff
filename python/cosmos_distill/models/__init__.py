"""Networks: modules made of :mod:`~cosmos_distill.ops` and :mod:`~cosmos_distill.parallel`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cosmos_distill.models.control import ControlledDiT
    from cosmos_distill.models.presets import NetworkConfig


def build(
    config: NetworkConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int | None = 0,
) -> ControlledDiT:
    """A network on ``device`` in ``dtype`` (default fp32).

    ``seed`` keys the initial weights by tensor name, so that they are the same in every parallel
    layout; ``None`` leaves them uninitialised, for loading a checkpoint or for the meta device.
    """
    import torch

    from cosmos_distill.models.control import ControlledDiT
    from cosmos_distill.models.init import initialize

    with torch.device(device):
        network = ControlledDiT(config, dtype=dtype or torch.float32)
    if seed is not None:
        initialize(network, seed)
    return network
