"""An adapter for a network that the package does not know: LTX-Video's transformer of diffusers, as it is."""

from typing import Any

import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor

from cosmos_distill import Adapter, TrigFlow


class LTX(Adapter):
    """LTX-Video (arXiv 2501.00103): a rectified flow whose tokens are single latent pixels."""

    network: LTXVideoTransformer3DModel

    def predict(self, x: Tensor, c_noise: Tensor, *, text: Tensor, **others: Any) -> Tensor:
        """The velocity, noise - clip. Times are told in thousandths; prompts have no padding here."""
        _, _, frames, height, width = x.shape
        velocity = self.network(
            hidden_states=x.flatten(2).transpose(1, 2),
            encoder_hidden_states=text,
            timestep=1000 * c_noise,
            encoder_attention_mask=torch.ones(text.shape[:2], dtype=torch.long, device=text.device),
            num_frames=frames,
            height=height,
            width=width,
            return_dict=False,
        )[0]
        return velocity.transpose(1, 2).reshape(x.shape)


def adapt(network: LTXVideoTransformer3DModel) -> LTX:
    """``network`` as a student, teacher or fake score; its blocks' outputs may be read by a discriminator."""
    names = [f"transformer_blocks.{i}" for i in range(len(network.transformer_blocks))]
    width = network.config.num_attention_heads * network.config.attention_head_dim
    return LTX(network, TrigFlow(), blocks=names, width=width, patch=(1, 1, 1))
