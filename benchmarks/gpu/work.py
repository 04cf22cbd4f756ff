"""What each operator has to do at the published networks' sizes, by arithmetic: bytes that have to cross
memory and floating-point operations. No kernel can go below the time these take at a GPU's roofs.

The minimum counts every input once and every output once, nothing else: no statistics kept for backward
(which could be recomputed from x), no partial sums, no second reading of keys and values. What our kernels
move besides is in :mod:`benchmarks.gpu.traffic` (Triton) and :mod:`benchmarks.gpu.cuda_traffic`.

Widths: bf16 activations, fp32 modulation, weights and log-sum-exp, fp32 losses. Batch 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu.devices import Device

BF16 = 2
FP32 = 4


@dataclass(frozen=True)
class Shape:
    """What one layer of a network sees of a clip."""

    name: str
    frames: int
    """Of the latent."""
    height: int
    width: int
    """Of the latent, in tokens (patches of 2 x 2)."""
    heads: int
    frame_modulation: bool
    """Modulation per frame (Predict2.5, whose conditioning frames have a noise level of their own), not per
    sample."""
    head_dim: int = 128

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def groups(self) -> int:
        """Rows of modulation."""
        return self.frames if self.frame_modulation else 1

    @property
    def latent(self) -> tuple[int, int, int, int, int]:
        """[B, C, T, H, W] of the video that the losses see: 16 channels."""
        return 1, 16, self.frames, 2 * self.height, 2 * self.width


TRANSFER1_7B = Shape("Transfer1-7B 720p", 16, 44, 80, heads=32, frame_modulation=False)
PREDICT25_2B = Shape("Predict2.5-2B 720p", 24, 44, 80, heads=16, frame_modulation=True)
PREDICT25_14B = Shape("Predict2.5-14B 720p", 24, 44, 80, heads=40, frame_modulation=True)
SHAPES = (TRANSFER1_7B, PREDICT25_2B, PREDICT25_14B)


@dataclass(frozen=True)
class Work:
    """One operator in one direction at one shape."""

    operator: str
    mode: str
    """"fwd" or "bwd"."""
    shape: Shape
    minimum: int
    """Bytes."""
    matrix_flops: int = 0
    """On bf16 matrix units."""
    vector_flops: int = 0
    """On fp32 units, a division or root counted as one."""

    def roof(self, device: Device) -> tuple[float, str]:
        """Seconds no kernel can beat on ``device``, and what binds it: "memory", "matrix" or "vector"."""
        seconds = {
            "memory": self.minimum / device.bandwidth,
            "matrix": self.matrix_flops / device.bf16_rate,
            "vector": self.vector_flops / device.fp32_rate,
        }
        bound = max(seconds, key=lambda name: seconds[name])
        return seconds[bound], bound


def _adaln(shape: Shape) -> list[Work]:
    elements = shape.tokens * shape.channels
    activation = elements * BF16
    vector = shape.groups * shape.channels * FP32
    return [
        # x -> out, with shift and scale
        Work("adaln_modulate", "fwd", shape, 2 * activation + 2 * vector, vector_flops=8 * elements),
        # grad, x -> dx, with scale, giving dshift and dscale
        Work("adaln_modulate", "bwd", shape, 3 * activation + 3 * vector, vector_flops=14 * elements),
        # x, y -> x_new, out, with gate, shift and scale
        Work("gated_residual_adaln", "fwd", shape, 4 * activation + 3 * vector, vector_flops=10 * elements),
        # two grads, x_new, y -> dx, dy, with gate and scale, giving the gradients of all three
        Work("gated_residual_adaln", "bwd", shape, 6 * activation + 5 * vector, vector_flops=18 * elements),
    ]


def _qk_norm_rope(shape: Shape) -> list[Work]:
    elements = shape.tokens * shape.channels
    activation = elements * BF16
    weights = 2 * shape.head_dim * FP32
    # Cosine and sine of each axis's angles, a third of them to an axis.
    tables = (shape.frames + shape.height + shape.width) * shape.head_dim // 6 * 2 * FP32
    return [
        # q, k -> q, k
        Work("qk_norm_rope", "fwd", shape, 4 * activation + weights + tables, vector_flops=14 * elements),
        # two grads, q, k -> dq, dk, and the gradients of both weights
        Work("qk_norm_rope", "bwd", shape, 6 * activation + 2 * weights + tables, vector_flops=30 * elements),
    ]


def _attention(shape: Shape) -> list[Work]:
    """Full self-attention: 2 products of tokens x tokens x channels forward, 5 backward."""
    activation = shape.tokens * shape.channels * BF16
    lse = shape.tokens * shape.heads * FP32
    product = 2 * shape.tokens**2 * shape.channels
    return [
        Work("attention", "fwd", shape, 4 * activation + lse, matrix_flops=2 * product),
        # q, k, v, out, grad -> dq, dk, dv
        Work("attention", "bwd", shape, 8 * activation + lse, matrix_flops=5 * product),
    ]


def _dm_loss(shape: Shape) -> list[Work]:
    _, channels, frames, height, width = shape.latent
    elements = channels * frames * height * width
    tensor = elements * FP32
    return [
        Work("renoise", "fwd", shape, 3 * tensor, vector_flops=2 * elements),
        # student, teacher, teacher without prompt, fake score -> direction
        Work("vsd_loss", "fwd", shape, 5 * tensor, vector_flops=10 * elements),
        Work("vsd_loss", "bwd", shape, 2 * tensor, vector_flops=elements),
        # prediction, target -> a number; prediction, target -> gradient
        Work("fake_score_loss", "fwd", shape, 2 * tensor, vector_flops=3 * elements),
        Work("fake_score_loss", "bwd", shape, 3 * tensor, vector_flops=3 * elements),
    ]


def works(shape: Shape) -> list[Work]:
    """Every operator in both directions at one shape."""
    return [*_adaln(shape), *_qk_norm_rope(shape), *_attention(shape), *_dm_loss(shape)]
