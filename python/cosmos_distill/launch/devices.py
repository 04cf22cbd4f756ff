"""GPUs that a plan is made for: what is published of them, and what is assumed. Counts become seconds
here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cosmos_distill.launch.cost import Count

NODE = 8
"""GPUs of one machine, whose links are faster than the network between machines."""


@dataclass(frozen=True)
class Gpu:
    """Peaks as published, and the shares of them that are reached by kernels of the sizes counted here.

    The shares are those reported for H100 (matrix products in bf16 of this size; FlashAttention-3 with heads
    of 128, forward and backward; streaming kernels). They are assumptions, the same for every setting.
    """

    name: str
    peak: float
    """Dense bf16 operations per second."""
    bandwidth: float
    """Bytes per second of its memory."""
    memory: float
    """GiB that CUDA says there are."""
    link: float
    """Bytes per second that a GPU sends to others of its machine."""
    network: float = 50e9
    """Bytes per second that a GPU sends to other machines: one port of 400 Gbit/s each."""
    products: float = 0.76
    attention_forward: float = 0.69
    attention_backward: float = 0.56
    streaming: float = 0.90
    sending: float = 0.80
    fp32: float = 0.5
    """Share of the bf16 rate that products in fp32 have (TF32)."""
    kept_free: float = 0.06
    """Share of the memory that CUDA, NCCL and the allocator's gaps take."""

    def seconds(self, count: Count, *, fp32: bool = False) -> float:
        """Time of the counted work: products and attention by their operations, the rest by its bytes."""
        backward = count.total("attention", "backward").flops
        forward = count.total("attention").flops - backward
        peak = self.peak * (self.fp32 if fp32 else 1.0)
        return (
            count.total("product").flops / (self.products * peak)
            + forward / (self.attention_forward * peak)
            + backward / (self.attention_backward * peak)
            + count.total("memory").bytes / (self.streaming * self.bandwidth)
        )

    def streamed(self, amount: float) -> float:
        """Time of reading and writing so many bytes."""
        return amount / (self.streaming * self.bandwidth)

    def sent(self, amount: float, *, within: bool) -> float:
        """Time of sending so many bytes ``within`` a machine or to others."""
        return amount / (self.sending * (self.link if within else self.network))

    @property
    def room(self) -> float:
        """Bytes that a run can have."""
        return self.memory * (1 - self.kept_free) * 2**30

    def assumptions(self) -> Iterator[str]:
        """What the seconds rest on, line by line."""
        yield (
            f"{self.name}: {self.memory:g} GiB, of which {self.kept_free:.0%} are kept free for CUDA, NCCL "
            "and gaps; nothing here was timed on a GPU"
        )
        yield (
            f"dense bf16 {self.peak / 1e12:.0f} TFLOP/s, of which matrix products reach {self.products:.0%}, "
            f"attention {self.attention_forward:.0%} forward and {self.attention_backward:.0%} backward; "
            f"{self.bandwidth / 1e12:.2f} TB/s, of which all else reaches {self.streaming:.0%}"
        )
        yield (
            f"{self.link / 1e9:.0f} GB/s to GPUs of the same machine, {NODE} in each, "
            f"{self.network / 1e9:.0f} GB/s to others, of which {self.sending:.0%} is reached"
        )


GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 989e12, 3.35e12, 79, 450e9),
        Gpu("h200", 989e12, 4.8e12, 140, 450e9),
        Gpu("a100-80gb", 312e12, 2.04e12, 79, 300e9, 25e9),
        Gpu("b200", 2250e12, 8.0e12, 178, 900e9),
    )
}
