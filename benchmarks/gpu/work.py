"""What each operator has to do, by arithmetic: bytes that must cross memory, bytes our kernels move, and
floating-point operations.

``minimum`` counts every input once and every output once, nothing else: what no kernel can go below. ``moved``
counts what the kernels ask memory for, derived from how they work; each formula says what it adds:

- statistics that forward keeps for backward (fp32, per row), though backward could recompute them from x;
- partial sums: modulation gradients are summed over tokens in a fixed order, so every block of rows writes its
  own sum, and a second kernel adds them up. ``partials`` is the number of such blocks;
- attention: every block of queries walks over all keys and values (and backward's dk/dv kernel the other way
  round). These bytes are asked of the caches; memory itself sees more than the minimum only as far as a head's
  keys and values do not stay in the level-2 cache. ``moved`` is thus an upper bound there.

Widths: bf16 activations, fp32 statistics, modulation and sums. Batch 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu.devices import Device

BF16 = 2
FP32 = 4


@dataclass(frozen=True)
class Shape:
    """What one network's layer sees: one clip of 720p."""

    name: str
    frames: int
    """Latent frames; modulation is per frame."""
    height: int
    width: int
    """Of the latent, in tokens (patches of 2 x 2)."""
    heads: int
    head_dim: int = 128

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def elements(self) -> int:
        """Of one activation."""
        return self.tokens * self.channels

    @property
    def latent(self) -> int:
        """Elements of the latent video: 16 channels, patches of 2 x 2."""
        return 16 * self.frames * 4 * self.height * self.width


TRANSFER1_7B = Shape("Transfer1-7B 720p", 16, 44, 80, heads=32)
PREDICT25_2B = Shape("Predict2.5-2B 720p", 24, 44, 80, heads=16)
PREDICT25_14B = Shape("Predict2.5-14B 720p", 24, 44, 80, heads=40)
SHAPES = (TRANSFER1_7B, PREDICT25_2B, PREDICT25_14B)


@dataclass(frozen=True)
class Work:
    """One operator, one direction, one shape."""

    operator: str
    mode: str
    """"fwd" or "bwd"."""
    shape: str
    minimum: int
    """Bytes."""
    moved: int
    """Bytes."""
    matrix_flops: int = 0
    """On bf16 matrix units, as the algorithm needs them once."""
    matrix_flops_done: int = 0
    """The same, as the kernels do them (recomputed scores counted as often as they are computed)."""
    vector_flops: int = 0
    """On fp32 units."""

    @property
    def ratio(self) -> float:
        """Bytes moved over the minimum."""
        return self.moved / self.minimum

    def roof(self, device: Device) -> tuple[float, str]:
        """Seconds no kernel can beat on ``device``, and what binds: "memory", "matrix" or "vector"."""
        seconds = {
            "memory": self.minimum / device.bandwidth,
            "matrix": self.matrix_flops / device.bf16_rate,
            "vector": self.vector_flops / device.fp32_rate,
        }
        bound = max(seconds, key=lambda name: seconds[name])
        return seconds[bound], bound


@dataclass(frozen=True)
class Blocks:
    """Sizes in which the kernels work, on which what they move depends."""

    adaln_rows: int
    """Rows whose modulation gradients one block sums."""
    qk_rows: int
    """Heads of tokens whose weight gradients one block sums."""
    forward_queries: int
    """Queries of a block of the attention's forward kernel."""
    backward_keys: int
    """Keys of a block of its dk/dv kernel."""
    backward_queries: int
    """Queries of a block of its dq kernel."""


def adaln(shape: Shape, blocks: Blocks) -> list[Work]:
    """adaln_modulate and gated_residual_adaln: one pass over memory each way, and the partial sums."""
    activation = shape.elements * BF16
    modulation = shape.frames * shape.channels * FP32
    stats = shape.tokens * 2 * FP32
    per_frame = shape.tokens // shape.frames
    partials = shape.frames * -(-per_frame // blocks.adaln_rows) * shape.channels * FP32
    works = []
    # Tensors read and written, vectors of modulation read, gradients of modulation: forward and backward.
    for name, forward, backward, vectors in (
        ("adaln_modulate", 2, 3, 2),  # x -> out;  grad, x -> dx
        ("gated_residual_adaln", 4, 6, 3),  # x, y -> x_new, out;  2 grads, x_new, y -> dx, dy
    ):
        minimum = forward * activation + vectors * modulation
        works.append(
            Work(name, "fwd", shape.name, minimum, minimum + stats, vector_flops=8 * shape.elements)
        )
        # Backward reads scale (and gate) and writes one gradient per vector.
        minimum = backward * activation + (vectors - 1) * modulation + vectors * modulation
        moved = minimum + stats + 2 * vectors * partials
        works.append(Work(name, "bwd", shape.name, minimum, moved, vector_flops=16 * shape.elements))
    return works


def qk_norm_rope(shape: Shape, blocks: Blocks) -> list[Work]:
    """q and k in one pass; tables of the axes are a few kilobytes, and read from the cache after that."""
    activation = shape.elements * BF16
    rstd = 2 * shape.tokens * shape.heads * FP32
    weights = 2 * shape.head_dim * FP32
    # A third of the angles for every axis, cosine and sine.
    tables = (shape.frames + shape.height + shape.width) * shape.head_dim // 6 * 2 * FP32
    partials = 2 * -(-shape.tokens * shape.heads // blocks.qk_rows) * shape.head_dim * FP32
    forward = 4 * activation + weights + tables
    backward = 6 * activation + 2 * weights + tables
    return [
        Work("qk_norm_rope", "fwd", shape.name, forward, forward + rstd, vector_flops=14 * shape.elements),
        Work(
            "qk_norm_rope",
            "bwd",
            shape.name,
            backward,
            backward + rstd + 2 * partials,
            vector_flops=28 * shape.elements,
        ),
    ]


def attention(shape: Shape, blocks: Blocks) -> list[Work]:
    """Full self-attention. Forward: 2 products; backward: 5, of which two are done once for dk/dv and again
    for dq (7 in all)."""
    activation = shape.elements * BF16
    lse = shape.tokens * shape.heads * FP32
    product = 2 * shape.tokens**2 * shape.channels
    forward = 4 * activation + lse
    passes = -(-shape.tokens // blocks.forward_queries)
    forward_moved = 2 * activation + lse + passes * 2 * activation
    backward = 8 * activation + lse  # q, k, v, out, grad -> dq, dk, dv
    dkdv = 4 * activation + -(-shape.tokens // blocks.backward_keys) * (2 * activation + 2 * lse)
    dq = 3 * activation + 2 * lse + -(-shape.tokens // blocks.backward_queries) * 2 * activation
    delta = 2 * activation + lse  # grad * out summed per row, once
    return [
        Work("attention", "fwd", shape.name, forward, forward_moved, 2 * product, 2 * product),
        Work("attention", "bwd", shape.name, backward, dkdv + dq + delta, 5 * product, 7 * product),
    ]


def dm_loss(shape: Shape) -> list[Work]:
    """Losses on the latent, fp32. vsd: with classifier-free guidance of the teacher; its direction is kept for
    backward, so forward writes a tensor that the minimum of a fused forward and backward does not need, were
    the loss alone wanted: it counts as moved, and as backward's input."""
    tensor = shape.latent * FP32
    n = shape.latent
    return [
        Work("renoise", "fwd", shape.name, 3 * tensor, 3 * tensor, vector_flops=2 * n),
        # student, teacher, unconditional, fake -> direction; the sums are a few bytes
        Work("vsd_loss", "fwd", shape.name, 4 * tensor, 5 * tensor, vector_flops=10 * n),
        Work("vsd_loss", "bwd", shape.name, 2 * tensor, 2 * tensor, vector_flops=n),
        # prediction, target -> sums; then both again -> gradient
        Work("fake_score_loss", "fwd", shape.name, 2 * tensor, 2 * tensor, vector_flops=3 * n),
        Work("fake_score_loss", "bwd", shape.name, 3 * tensor, 3 * tensor, vector_flops=3 * n),
    ]


def works(blocks: Blocks) -> list[Work]:
    """Every operator, direction and shape."""
    found: list[Work] = []
    for shape in SHAPES:
        found += [*adaln(shape, blocks), *qk_norm_rope(shape, blocks), *attention(shape, blocks)]
        found += dm_loss(shape)
    return found
