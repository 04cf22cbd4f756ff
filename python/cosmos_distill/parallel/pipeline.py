"""Pipeline parallelism of one network as a node of autograd.

The blocks of a network are cut into *runs*; run n belongs to pipeline rank n modulo the ranks. A call
``network(x, ...)`` on a whole batch cuts it into micro-batches, sends them through the runs by Megatron's
schedule without a graph, and returns whole outputs on every rank. Its backward pass knows the gradient of
these outputs and sends the micro-batches through again by one-forward-one-backward, with the inner product of
output and gradient as the loss. So whatever is computed from a network's outputs (losses, discriminators,
another network) is written as if for one rank, at most the graph of one network exists at a time, and that
only for as many micro-batches as 1F1B keeps in flight. The price is one more forward pass of networks that
are differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos_distill.parallel import fsdp, groups
from cosmos_distill.parallel.runs import split_blocks

# Before anything else of Megatron, which it silences.
from cosmos_distill.parallel import megatron  # noqa: F401  # isort: skip
from megatron.core.enums import ModelType  # isort: skip
from megatron.core.pipeline_parallel import get_forward_backward_func  # isort: skip
from megatron.core.transformer import TransformerConfig  # isort: skip


_OUT = -1
"""The output's name among those of blocks."""


class Inputs(Protocol):
    """Everything that a network computes from, batch first."""

    @property
    def x(self) -> Tensor:
        """What gradients may flow to, [B, C, T, H, W]."""

    def cut(self, size: int) -> Sequence[Inputs]:
        """Micro-batches of ``size`` samples."""

    def pick(self, samples: Tensor) -> Inputs:
        """Samples by index."""

    def with_x(self, x: Tensor) -> Inputs:
        """The same with another x."""


class Network(Protocol):
    """A network, or what a pipeline rank has of it."""

    config: Any
    micro_batch: int
    runs: dict[int, range]

    def parameters(self) -> Any: ...

    def tokens(self, inputs: Any) -> int:
        """Tokens of a sample that a rank passes on."""

    def output(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the last run's output."""

    def feature(self, x: Tensor) -> tuple[int, ...]:
        """Shape of a block's feature."""

    def run(
        self, number: int, h: Tensor | None, inputs: Any, features: Sequence[int], features_only: bool
    ) -> tuple[Tensor, dict[int, Tensor]]: ...


def own_runs(blocks: int, leading_blocks: int) -> dict[int, range]:
    """The runs of this pipeline rank, by number."""
    ranks, rank = groups.layout().pipeline, groups.pipeline_group().rank()
    runs = enumerate(_all_runs(blocks, leading_blocks))
    return {number: run for number, run in runs if number % ranks == rank}


def _all_runs(blocks: int, leading_blocks: int) -> list[range]:
    layout = groups.layout()
    return split_blocks(blocks, leading_blocks, layout.pipeline * layout.virtual_pipeline)


def call(
    network: Network, inputs: Inputs, features: tuple[int, ...], features_only: bool
) -> tuple[Tensor, dict[int, Tensor]]:
    """Output [B, ...] (without meaning under ``features_only``) and features of a pipelined network, whole on
    every rank. Collective over the pipeline."""
    batch = len(inputs.x)
    size = next(n for n in range(min(network.micro_batch, batch), 0, -1) if batch % n == 0)
    layout = groups.layout()
    if layout.virtual_pipeline > 1 and (missing := -(batch // size) % layout.pipeline):
        # The interleaved schedule takes as many micro-batches at a time as there are ranks.
        inputs = inputs.pick(torch.arange(batch + missing * size, device=inputs.x.device) % batch)
    job = _Job(network, inputs, size, features, features_only)
    if torch.is_grad_enabled() and (
        inputs.x.requires_grad or any(p.requires_grad for p in network.parameters())
    ):
        # The network's weights are no arguments: the anchor asks for the gradient in their place.
        results = _Call.apply(job, inputs.x, torch.zeros((), requires_grad=True))
    else:
        with torch.no_grad():
            results = job.forward()
    out, *taken = (value[:batch] for value in results)
    return out, dict(zip(features, taken, strict=True))


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, job: _Job, x: Tensor, anchor: Tensor) -> tuple[Tensor, ...]:
        ctx.job, ctx.x_needs_gradient = job, x.requires_grad
        ctx.set_materialize_grads(False)
        return job.forward()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, Tensor | None, Tensor]:
        with torch.enable_grad():
            grad = ctx.job.backward(grads, ctx.x_needs_gradient)
        return None, grad, torch.zeros(())


class _Attach(torch.autograd.Function):
    """The first argument; the gradients of the others are known and join the backward pass here."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, grads: list[Tensor], *others: Tensor) -> Tensor:
        ctx.grads = grads
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None, *ctx.grads


class _Stage(nn.Module):
    """One run as Megatron's schedules want a model."""

    def __init__(self, number: int, config: TransformerConfig, vp_stage: int | None) -> None:
        super().__init__()
        self.number, self.config, self.vp_stage = number, config, vp_stage
        self.model_type = ModelType.encoder_or_decoder
        self.received: Tensor | None = None

    def set_input_tensor(self, tensors: list[Tensor | None]) -> None:
        """Called by the schedule with what the run before has sent."""
        self.received = tensors[0]


class _Job:
    """One network on one batch: forward without a graph, and later backward."""

    def __init__(
        self, network: Network, inputs: Inputs, size: int, features: tuple[int, ...], features_only: bool
    ) -> None:
        self.network, self.inputs, self.size = network, inputs, size
        self.features, self.features_only = features, features_only
        runs = _all_runs(network.config.blocks, network.config.leading_blocks)
        self.last = len(runs) - 1
        self.owner = {b: n for n, run in enumerate(runs) for b in run}
        """Run of each block."""
        dtype = next(iter(network.parameters())).dtype
        self.config = _schedule_config(network.config, dtype)
        self.parts = inputs.cut(size)

    def forward(self) -> tuple[Tensor, ...]:
        """The output and the features, [B, ...] each, on every rank."""
        found: dict[tuple[int, int], Tensor] = {}

        def step(queue: Any, stage: _Stage) -> tuple[Tensor, Any]:
            i = next(queue)
            h, taken = self._run(stage, self.parts[i], self.features_only)
            found.update({(block, i): value for block, value in taken.items()})
            if stage.number < self.last:
                return self._boxed(h), None
            found[_OUT, i] = h
            return h, lambda _, non_loss_data: None

        self._schedule(step, forward_only=True)
        x = self.inputs.x
        out = like = x.new_empty(len(x), 0, dtype=self.config.pipeline_dtype)
        if not self.features_only:
            out = self._broadcast(_OUT, self.last, found, self.network.output(x), like)
        return out, *(
            self._broadcast(block, self.owner[block], found, self.network.feature(x), like)
            for block in self.features
        )

    def backward(self, grads: Sequence[Tensor | None], x_needs_gradient: bool) -> Tensor | None:
        """Add to the gradients of the rank's weights; the gradient of x, on every rank."""
        parts = self.parts
        if x_needs_gradient:
            parts = [part.with_x(part.x.detach().requires_grad_()) for part in parts]
        of = dict(zip((_OUT, *self.features), grads, strict=True))
        wanted = {name: grad.split(self.size) for name, grad in of.items() if grad is not None}
        features_only = _OUT not in wanted  # what lies behind the last feature has no gradient

        def step(queue: Any, stage: _Stage) -> tuple[Tensor, Any]:
            i = next(queue)
            with fsdp.replay():
                h, taken = self._run(stage, parts[i], features_only)
            if stage.number == self.last:
                if not features_only:
                    taken[_OUT] = h
                h = 0 * h.sum()  # a loss as the schedule wants it; the gradients are those attached
            else:
                h = self._boxed(h)
            known = {name: value for name, value in taken.items() if name in wanted}
            h = _Attach.apply(h, [wanted[name][i] for name in known], *known.values())
            return h, lambda loss: (1 * loss, None)  # which the schedule scales in place

        self._schedule(step, forward_only=False)
        if not x_needs_gradient:
            return None
        whole = torch.empty_like(self.inputs.x)
        if groups.pipeline_group().rank() == 0:
            whole = torch.cat([_gradient(part.x) for part in parts])
        return _broadcast(whole, 0)

    def _broadcast(
        self,
        name: int,
        run: int,
        found: dict[tuple[int, int], Tensor],
        shape: tuple[int, ...],
        like: Tensor,
    ) -> Tensor:
        """What the rank of ``run`` found under ``name``, of all micro-batches, on every rank."""
        owner = run % groups.layout().pipeline
        if groups.pipeline_group().rank() == owner:
            return _broadcast(torch.cat([found[name, i] for i in range(len(self.parts))]), owner)
        return _broadcast(like.new_empty(shape), owner)

    def _run(self, stage: _Stage, part: Inputs, features_only: bool) -> tuple[Tensor, dict[int, Tensor]]:
        h = stage.received
        if h is not None:
            h = h.view(self.size, -1, h.shape[-1])
        return self.network.run(stage.number, h, part, self.features, features_only)

    def _boxed(self, h: Tensor) -> Tensor:
        """Tokens in the shape of Megatron's messages, whose first dimension is the sequence's."""
        return h.contiguous().view(-1, self.size, h.shape[-1])

    def _schedule(self, step: Any, *, forward_only: bool) -> None:
        layout = groups.layout()
        several = layout.virtual_pipeline > 1
        stages = [
            _Stage(number, self.config, chunk if several else None)
            for chunk, number in enumerate(self.network.runs)
        ]
        count = len(self.parts)
        get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=[iter(range(count)) for _ in stages] if several else iter(range(count)),
            model=stages if several else stages[0],
            num_microbatches=count,
            # Megatron divides by the context size.
            seq_length=self.network.tokens(self.inputs) * layout.context,
            micro_batch_size=self.size,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )


def _schedule_config(config: Any, dtype: torch.dtype) -> TransformerConfig:
    """What the schedules read: the messages' width and type, and how they are sent."""
    layout = groups.layout()
    several = layout.virtual_pipeline > 1
    return TransformerConfig(
        num_layers=config.blocks,
        hidden_size=config.width,
        num_attention_heads=config.heads,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if several else None,
        context_parallel_size=layout.context,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        use_cpu_initialization=True,
        # Interleaved, two messages of one batch to the same rank could be taken for each other.
        overlap_p2p_comm=several,
        batch_p2p_comm=not several,
    )


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


def _broadcast(value: Tensor, owner: int) -> Tensor:
    group = groups.pipeline_group()
    value = value.contiguous()
    dist.broadcast(value, dist.get_global_rank(group, owner), group=group)
    return value
