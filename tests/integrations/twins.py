"""Networks of this package and of diffusers with the same weights, and clips for both."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CosmosTransformer3DModel, WanTransformer3DModel
from torch import Tensor

from cosmos_distill import models
from cosmos_distill.integrations.diffusers import CosmosAdapter, WanAdapter
from cosmos_distill.models.common import weights
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.models.common.network import ControlledDiT
from cosmos_distill.models.predict25.config import Predict25Config
from cosmos_distill.models.transfer1.config import Transfer1Config

SHAPE = (16, 3, 8, 8)
SIZES: dict[str, Any] = {
    "width": 48, "blocks": 2, "heads": 2, "head_dim": 24, "adaln_rank": 8, "text_dim": 24, "text_tokens": 5,
    "max_frames": 4, "max_height": 12, "max_width": 12,
}  # fmt: skip
TRANSFER = Transfer1Config(**SIZES, control_blocks=0)
PREDICT = Predict25Config(**SIZES, text_projection=28, clean_condition_times=True)
EPS = 1e-6


def ours(config: DiTConfig, seed: int = 1) -> ControlledDiT:
    """A network none of whose weights is zero."""
    network = models.build(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def theirs(network: ControlledDiT) -> CosmosAdapter:
    """diffusers' network with the weights of ours."""
    c = network.config
    twin = CosmosTransformer3DModel(
        in_channels=c.latent_channels + 1,
        out_channels=c.latent_channels,
        num_attention_heads=c.heads,
        attention_head_dim=c.head_dim,
        num_layers=c.blocks,
        mlp_ratio=c.mlp_ratio,
        text_embed_dim=c.text_dim,
        adaln_lora_dim=c.adaln_rank,
        max_size=(c.max_frames, c.max_height, c.max_width),
        rope_scale=(c.rope_ratio_t, c.rope_ratio_hw, c.rope_ratio_hw),
        extra_pos_embed_type="learnable" if c.learnable_positions else None,
        use_crossattn_projection=c.text_projection is not None,
        crossattn_proj_in_channels=c.text_channels,
        encoder_hidden_states_channels=c.text_dim,
    )
    twin.load_state_dict(weights.to_diffusers(network.state_dict()))
    for block in twin.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q.eps = attention.norm_k.eps = EPS  # 1e-5 there, 1e-6 in the official network
    return CosmosAdapter(twin, timestep_scale=c.timestep_scale)


def wan(seed: int = 0, **options: Any) -> WanAdapter:
    """A random Wan network of the smallest kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, text_dim=24, freq_dim=32, ffn_dim=64, num_layers=2,
            rope_max_seq_len=16,
        )  # fmt: skip
    return WanAdapter(network, **options)


def samples(text: int, count: int = 8) -> list[dict[str, Tensor]]:
    """Clips that differ in frame rate and padding; sample n is a function of n."""
    found = []
    for n in range(count):
        g = torch.Generator().manual_seed(n)
        padding = torch.zeros(1, *SHAPE[2:])
        padding[..., -1] = n % 2
        found.append(
            {
                "latents": 0.5 * torch.randn(SHAPE, generator=g),
                "text": torch.randn(5, text, generator=g),
                "negative_text": torch.randn(5, text, generator=g),
                "fps": torch.tensor(12.0 * (1 + n % 3)),
                "padding_mask": padding,
            }
        )
    return found
