"""Data parallelism of one role: which kind of share each network gets, see ``config.Parallel.data``."""

from __future__ import annotations

from torch import nn

from cosmos_distill.config import Parallel
from cosmos_distill.parallel import fsdp
from cosmos_distill.parallel.parts import reduction_group
from cosmos_distill.parallel.share import PlainShare, Share


def shard(network: nn.Module, parallel: Parallel) -> None:
    """Under data "fsdp", leave this rank its share of the weights of ``network``; else do nothing.

    Collective. To be called when the network has its weights, before its optimiser is made; frozen networks
    are sharded, too. A network without blocks (a discriminator) and one of a single rank stay as they are.
    """
    group = reduction_group(network)
    if parallel.data == "fsdp" and group.size() > 1:
        fsdp.shard(network, group, parallel.fsdp_shards)


def share_of(network: nn.Module, parallel: Parallel) -> Share:
    """This rank's share of the parameters of ``network`` that are trainable now."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    group = reduction_group(network)
    if fsdp.is_sharded(network):
        return fsdp.FsdpShare(network, parameters)
    if group.size() == 1:
        return PlainShare(network, parameters)
    from cosmos_distill.parallel.buffers import BufferedShare  # and with it Megatron

    return BufferedShare(network, parameters, group, parallel.data == "sharded_optimizer")
