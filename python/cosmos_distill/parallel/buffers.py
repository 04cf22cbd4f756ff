"""Gradients in Megatron's flat buffers: data parallelism with a whole copy of the weights on every rank.

Megatron's DistributedDataParallel is used for its buffers, hooks and collectives; the network is not wrapped.
What this file relies on beside its documented interface, in 0.16 as in 0.19: ``main_grad`` of a parameter is
a view of its bucket's ``grad_data``; ``bucket_groups[i].buckets[j]`` have ``params_list``, ``grad_data`` and
``param_data`` and are cut into equal consecutive shards by rank; ``buffers[i].grad_data`` is the whole memory
of the gradients; ``grad_accs`` is all that keeps its hooks alive.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos_distill.parallel import groups
from cosmos_distill.parallel.parts import parts_of
from cosmos_distill.parallel.share import Share, Span

# Before anything else of Megatron, which it silences.
from cosmos_distill.parallel.megatron import parallel_state  # isort: skip
from megatron.core import distributed  # isort: skip
from megatron.core.process_groups_config import ProcessGroupCollection  # isort: skip
from megatron.core.transformer.transformer_config import TransformerConfig  # isort: skip


class BufferedShare(Share):
    """Gradients of a whole copy, accumulated in fp32 in flat buffers and summed bucket by bucket.

    With ``sharded`` a rank gets the sum of its shard of every bucket only (reduce-scatter), steps that, and
    the weights, flat as well, are gathered afterwards (ZeRO-1, Rajbhandari et al. 2020, arXiv 1910.02054).
    The step is ours and not Megatron's DistributedOptimizer, which without Apex or Transformer Engine steps
    by torch's AdamW and then saves and loads its counters wrongly.

    Sums overlap with the backward pass on CUDA, unless there is a pipeline, which runs its backward passes
    in an order of its own. Gathering does not overlap with the forward pass: Megatron waits for it in hooks
    of modules that must all be trainable, and roles are frozen and thawed from step to step.

    The buffers hold zeros for a parameter that had no gradient in a step; it is told apart all the same and
    not stepped. Outside of its phase (``requires_grad_(False)``) their memory is given back.
    """

    sums_data_last = True

    def __init__(
        self,
        network: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        group: dist.ProcessGroup,
        sharded: bool,
    ) -> None:
        # What pipeline ranks have in common, in buffers of its own: they are cut alike on all of them.
        parts, several = parts_of(network), groups.pipeline_group().size() > 1
        common = [p for name, p in parameters.items() if several and not parts[name].one_stage]
        own = [p for name, p in parameters.items() if not several or parts[name].one_stage]
        self._ddps = [_megatron(some, group, sharded) for some in (common, own) if some]
        self._sharded = sharded
        self._gradients: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        spans: dict[str, Span] = {}
        buckets = [bucket for ddp in self._ddps for group in ddp.bucket_groups for bucket in group.buckets]
        bucket_of = {p: bucket for bucket in buckets for p in bucket.params_list}
        for name, p in parameters.items():
            if not sharded:
                weights[name], self._gradients[name] = p, _main_grad(p)
                spans[name] = Span(0, tuple(p.shape))
                continue
            bucket = bucket_of[p]
            size = bucket.grad_data.numel() // group.size()
            start = _main_grad(p).storage_offset() - bucket.grad_data.storage_offset()
            first = min(max(start, group.rank() * size), start + p.numel())
            last = max(first, min(start + p.numel(), (group.rank() + 1) * size))
            weights[name], self._gradients[name] = bucket.param_data[first:last], bucket.grad_data[first:last]
            spans[name] = Span(first - start, tuple(p.shape))
        super().__init__(network, parameters, weights, spans, group.size() if sharded else 1)
        self._found: set[str] = set()
        """Parameters with a gradient in this step."""
        self._ready: set[str] = set()
        """Those with one since the last micro-batch began."""
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._note(name)) for name, p in self.parameters.items()
        ]

    def requires_grad_(self, wanted: bool) -> None:
        super().requires_grad_(wanted)
        if not wanted:
            self.zero_grad()
        for buffer in self.buffers():
            memory = buffer.grad_data.untyped_storage()
            if not wanted:
                memory.resize_(0)
            elif memory.size() == 0:
                memory.resize_(buffer.grad_data.nbytes)
                buffer.grad_data.zero_()

    def buffers(self) -> list[Any]:
        """Megatron's buffers, the memory of the gradients in ``grad_data``."""
        return [buffer for ddp in self._ddps for buffer in ddp.buffers]

    def zero_grad(self) -> None:
        super().zero_grad()
        self._ready.clear()
        if self._found:
            for ddp in self._ddps:
                ddp.zero_grad_buffer()
            self._found.clear()

    @contextmanager
    def backward_of(self, last: bool) -> Iterator[None]:
        if last:
            yield
        else:
            with ExitStack() as stack:
                for ddp in self._ddps:
                    stack.enter_context(ddp.no_sync())
                yield
            self._ready.clear()

    def reduce_data(self) -> None:
        for ddp in self._ddps:
            if ddp.ddp_config.overlap_grad_reduce:
                # A bucket is sent when all of its parameters are ready: those without a gradient never are.
                for name, p in self.parameters.items():
                    if name not in self._ready and p in ddp.param_to_bucket_group:
                        ddp.param_to_bucket_group[p].register_grad_ready(p)
            ddp.finish_grad_sync()
        for name, master in self.masters.items():
            master.grad = self._gradients[name] if name in self._found else None

    def gather(self) -> None:
        if self._sharded:
            for ddp in self._ddps:
                ddp.start_param_sync(force_sync=True)

    def close(self) -> None:
        self.zero_grad()
        for hook in self._hooks:
            hook.remove()
        for ddp in self._ddps:
            ddp.grad_accs.clear()
        for p in self.parameters.values():
            p.requires_grad_(True)
            del p.main_grad  # type: ignore[attr-defined]

    def _local(self, names: list[str]) -> dict[str, Tensor | None]:
        return {name: _main_grad(self.parameters[name]) if name in self._found else None for name in names}

    def _set_local(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            _main_grad(self.parameters[name]).copy_(gradient)
            self._found.add(name)

    def _note(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            self._found.add(name)
            self._ready.add(name)

        return hook


def overlaps() -> bool:
    """Whether gradients are summed while the backward pass goes on."""
    return torch.cuda.is_available() and groups.layout().pipeline == 1


def _megatron(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, sharded: bool) -> Any:
    """Buffers, hooks and collectives of trainable parameters."""
    # Of the sizes of a transformer nothing is read; the last setting makes gradients sums instead of means.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its defaults contain a setting that it calls deprecated
        config = TransformerConfig(
            num_layers=1, hidden_size=1, num_attention_heads=1, calculate_per_token_loss=True
        )
    settings = distributed.DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlaps(),
        use_distributed_optimizer=sharded,
    )
    members = ProcessGroupCollection()
    for name in ("dp", "dp_cp", "intra_dp_cp", "expt_dp", "intra_expt_dp"):
        setattr(members, name, group)
    members.tp, members.pp = groups.tensor_group(), groups.pipeline_group()
    members.ep = parallel_state.get_expert_model_parallel_group()
    module = nn.ParameterList(parameters)
    return distributed.DistributedDataParallel(config, settings, module, pg_collection=members)


def _main_grad(parameter: nn.Parameter) -> Tensor:
    gradient: Tensor = parameter.main_grad  # type: ignore[attr-defined]
    return gradient
