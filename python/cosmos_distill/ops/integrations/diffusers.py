"""The fused operators in diffusers' Cosmos networks, in place and reversibly.

    from cosmos_distill.ops.integrations.diffusers import fuse, unfuse

    fuse(transformer)  # a CosmosTransformer3DModel or CosmosControlNetModel
    ...                # train, sample, compile, checkpoint, save as ever
    unfuse(transformer)

No parameter is added, moved or renamed. Modules of diffusers are made instances of the subclasses below, with
the same attributes and another ``forward``; a module that is not what diffusers makes it (an attention
processor of your own, say) is left alone.

diffusers' Cosmos networks resize their padding mask with torchvision, and without it die of a ``NameError``.
Importing this module gives them that one function where torchvision is missing (it has no build for every
build of torch); where it is installed, theirs is left in place.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers import transformer_cosmos as stock
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos_distill import ops

__all__ = ["fuse", "unfuse"]


def _resize(mask: Tensor, size: list[int], interpolation: str) -> Tensor:
    return F.interpolate(mask, size=size, mode=interpolation)


def do_without_torchvision() -> None:
    """Put nearest-neighbour resizing where diffusers' Cosmos networks found no torchvision."""
    transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=_resize), InterpolationMode=SimpleNamespace(NEAREST="nearest")
    )
    for name in ("transformers.transformer_cosmos", "controlnets.controlnet_cosmos"):
        try:
            module = import_module(f"diffusers.models.{name}")
        except ImportError:  # the ControlNet came with Cosmos 2.5
            continue
        if not hasattr(module, "transforms"):
            module.transforms = transforms  # type: ignore[attr-defined]


do_without_torchvision()


class Rotary(NamedTuple):
    """What the blocks of a fused network are handed in place of (cos, sin)."""

    cos: Tensor
    sin: Tensor
    frames: int
    """Of the token grid: tokens of one frame share their noise level, hence their modulation."""


class CosmosRotaryPosEmbed(stock.CosmosRotaryPosEmbed):
    """diffusers' own tables, and the number of frames they span."""

    def forward(self, hidden_states: Tensor, fps: int | None = None) -> Rotary:
        cos, sin = super().forward(hidden_states, fps=fps)
        return Rotary(cos, sin, hidden_states.shape[2] // self.patch_size[0])


def _modulation(norm: Any, embedded: Tensor, temb: Tensor | None, chunks: int) -> tuple[Tensor, ...]:
    out = norm.linear_2(norm.linear_1(norm.activation(embedded)))
    if temb is not None:
        out = out + temb[..., : out.shape[-1]]
    return out.chunk(chunks, dim=-1)


def _branch_dtype(x: Tensor) -> torch.dtype | None:
    """What the linear layers behind a norm cast an fp32 residual stream to under torch.autocast; otherwise
    None, which stands for x's own dtype."""
    kind = x.device.type
    if x.dtype != torch.float32 or kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def _grouped(x: Tensor, embedded: Tensor, temb: Tensor | None, frames: int | None) -> tuple[Any, ...]:
    """x [B, N, D] and embeddings with as many rows as there are different ones: x stays whole for one noise
    level per sample, and becomes [B, T, N / T, D] for one per frame, [B, N, 1, D] where frames are unknown.
    """
    batch, count, width = x.shape
    if embedded.dim() == 2:
        return x, *(e if e is None or len(e) == batch else e.expand(batch, -1) for e in (embedded, temb))
    groups = count if frames is None else frames
    x = x.reshape(batch, groups, -1, width)
    # diffusers repeats the embeddings for every token of a frame: the first stands for all.
    return x, *(None if e is None else e[:, :: x.shape[2]] for e in (embedded, temb))


class CosmosAdaLayerNorm(stock.CosmosAdaLayerNorm):
    """The norm before the last projection."""

    frames: int | None = None
    """Of the token grid, of the network's call under way: diffusers hands this norm no positions."""

    def forward(self, hidden_states: Tensor, embedded_timestep: Tensor, temb: Tensor | None = None) -> Tensor:
        x, embedded, temb = _grouped(hidden_states, embedded_timestep, temb, self.frames)
        shift, scale = _modulation(self, embedded, temb, 2)
        return ops.adaln_modulate(x, shift, scale, eps=self.norm.eps).reshape(hidden_states.shape)


class CosmosTransformerBlock(stock.CosmosTransformerBlock):
    """Self-attention, cross-attention and MLP; the norms between them are fused to the residual before."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any,
        embedded_timestep: Tensor,
        temb: Tensor | None = None,
        image_rotary_emb: Any = None,
        extra_pos_emb: Tensor | None = None,
        attention_mask: Any = None,
        controlnet_residual: Tensor | None = None,
        latents: Tensor | None = None,
        block_idx: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if getattr(self, "before_proj", None) is not None:
            hidden_states = self.before_proj(hidden_states) + latents
        if extra_pos_emb is not None:
            hidden_states = hidden_states + extra_pos_emb
        frames = image_rotary_emb.frames if isinstance(image_rotary_emb, Rotary) else None
        rotary = None if image_rotary_emb is None else (image_rotary_emb[0], image_rotary_emb[1])
        x, embedded, temb = _grouped(hidden_states, embedded_timestep, temb, frames)
        shift_1, scale_1, gate_1 = _modulation(self.norm1, embedded, temb, 3)
        shift_2, scale_2, gate_2 = _modulation(self.norm2, embedded, temb, 3)
        shift_3, scale_3, gate_3 = _modulation(self.norm3, embedded, temb, 3)

        dtype = _branch_dtype(x)
        h = ops.adaln_modulate(x, shift_1, scale_1, eps=self.norm1.norm.eps, dtype=dtype)
        h = self.attn1(h.reshape(hidden_states.shape), image_rotary_emb=rotary)
        x, h = ops.gated_residual_adaln(
            x, h.view_as(x), gate_1, shift_2, scale_2, eps=self.norm2.norm.eps, dtype=dtype
        )
        h = self.attn2(
            h.reshape(hidden_states.shape),
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
        )
        x, h = ops.gated_residual_adaln(
            x, h.view_as(x), gate_2, shift_3, scale_3, eps=self.norm3.norm.eps, dtype=dtype
        )
        x = ops.gated_residual(x, self.ff(h), gate_3).reshape(hidden_states.shape)

        if controlnet_residual is not None:
            x = x + controlnet_residual
        if getattr(self, "after_proj", None) is not None:
            return x, self.after_proj(x)
        return x


class CosmosTransformer3DModel(stock.CosmosTransformer3DModel):
    """diffusers' own network, whose last norm learns how many frames there are."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.norm_out.frames = hidden_states.shape[2] // self.config.patch_size[0]
        try:
            return super().forward(hidden_states, *args, **kwargs)
        finally:
            self.norm_out.frames = None


class Processor:
    """Attention with normalised and rotated queries and keys, to a text or to (text, image)."""

    def __init__(self, replaced: Any, fuse_attention: bool) -> None:
        self.replaced = replaced
        self.fuse_attention = fuse_attention

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self.fuse_attention and mask is None:
            return ops.attention(q, k, v).flatten(2)
        out = dispatch_attention_fn(q, k, v, attn_mask=mask, dropout_p=0.0, is_causal=False)
        return out.flatten(2).type_as(q)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        text, image, text_mask, image_mask = encoder_hidden_states, None, attention_mask, None
        if isinstance(encoder_hidden_states, tuple):
            text, image = encoder_hidden_states
            text_mask, image_mask = attention_mask or (None, None)
        context = hidden_states if text is None else text
        q, k, v = _heads(attn, attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        q, k = _norm(q, k, attn.norm_q, attn.norm_k, *(image_rotary_emb or (None, None)))
        out = self._attend(q, k, v, text_mask)
        if image is not None:
            q, k, v = _heads(attn, attn.q_img(hidden_states), attn.k_img(image), attn.v_img(image))
            q, k = _norm(q, k, attn.q_img_norm, attn.k_img_norm)
            out = out + self._attend(q, k, v, image_mask)
        return attn.to_out[1](attn.to_out[0](out))


def _heads(attn: Any, *projected: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.unflatten(2, (attn.heads, -1)) for x in projected)


def _norm(
    q: Tensor, k: Tensor, q_norm: Any, k_norm: Any, cos: Tensor | None = None, sin: Any = None
) -> tuple[Tensor, Tensor]:
    return ops.qk_norm_rope(q, k, q_norm.weight, k_norm.weight, cos, sin, eps=q_norm.eps)


_CLASSES: dict[type, type] = {
    stock.CosmosTransformerBlock: CosmosTransformerBlock,
    stock.CosmosAdaLayerNorm: CosmosAdaLayerNorm,
    stock.CosmosRotaryPosEmbed: CosmosRotaryPosEmbed,
    stock.CosmosTransformer3DModel: CosmosTransformer3DModel,
}
_PROCESSORS = tuple(
    getattr(stock, name)
    for name in ("CosmosAttnProcessor2_0", "CosmosAttnProcessor2_5")
    if hasattr(stock, name)  # the second came with Cosmos 2.5
)


def _plain_norms(attn: Any) -> bool:
    norms = [attn.norm_q, attn.norm_k]
    if hasattr(attn, "q_img_norm"):
        norms += [attn.q_img_norm, attn.k_img_norm]
    return all(type(n) is RMSNorm and n.weight is not None and n.bias is None for n in norms) and all(
        a.eps == b.eps for a, b in zip(norms[::2], norms[1::2], strict=True)
    )


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ValueError(
            f"model must be a torch.nn.Module, such as the transformer of a Cosmos pipeline, not {kind}"
        )


def fuse(model: nn.Module, *, attention: bool = True) -> nn.Module:
    """Make a Cosmos network of diffusers use the fused operators, forward and backward.

    Args:
        model: CosmosTransformer3DModel, CosmosControlNetModel, or a module that holds some; changed in place.
            Weights, their names and dtypes stay.
        attention: run attention through :func:`cosmos_distill.ops.attention` where there is no mask; False
            leaves it to diffusers' dispatcher and the backend set there.

    Returns:
        The model itself.

    Raises:
        ValueError: it is no module, or holds no Cosmos transformer block.
    """
    _check(model)
    blocks = [m for m in model.modules() if isinstance(m, stock.CosmosTransformerBlock)]
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} holds no CosmosTransformerBlock of diffusers: pass the transformer or "
            "the ControlNet of a Cosmos pipeline"
        )
    for module in model.modules():
        module.__class__ = _CLASSES.get(type(module), type(module))
    for attn in (attn for block in blocks for attn in (block.attn1, block.attn2)):
        if type(attn.processor) in _PROCESSORS and _plain_norms(attn):
            attn.set_processor(Processor(attn.processor, attention))
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Undo :func:`fuse`, in place. Returns the model itself.

    Raises:
        ValueError: it is no module.
    """
    _check(model)
    back = {ours: theirs for theirs, ours in _CLASSES.items()}
    module: Any
    for module in model.modules():
        module.__class__ = back.get(type(module), type(module))
        processor = getattr(module, "processor", None)
        if isinstance(processor, Processor):
            module.set_processor(processor.replaced)
    return model
