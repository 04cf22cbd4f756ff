"""diffusers' video transformers as they are: distilled without a change to them, saved by themselves.

    teacher = adapt(WanTransformer3DModel.from_pretrained(...))
    ...
    student.save_pretrained("student")  # a folder that WanTransformer3DModel.from_pretrained reads

The operators alone, in a network that diffusers trains or samples, are
:mod:`cosmos_distill.ops.integrations.diffusers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from cosmos_distill.adapters import Adapter, Recompute
from cosmos_distill.config import EDM, TrigFlow
from cosmos_distill.integrations.few_step import FewStepScheduler
from cosmos_distill.models.common.given import augmented_frames, clean_frames
from cosmos_distill.ops.integrations import diffusers as _operators
from cosmos_distill.parallel.agreement import is_rank_zero, on_rank_zero

__all__ = ["CosmosAdapter", "DiffusersAdapter", "FewStepScheduler", "WanAdapter", "adapt"]

_operators.do_without_torchvision()

WAN_TIMES = 1000.0
"""Wan is told times within 0..1000."""


class DiffusersAdapter(Adapter):
    """What all networks of diffusers have in common."""

    network: Any

    @property
    def activation_checkpointing(self) -> Recompute:
        """diffusers' own gradient checkpointing, of whole blocks."""
        return "full" if self.network.is_gradient_checkpointing else "none"

    @activation_checkpointing.setter
    def activation_checkpointing(self, what: Recompute) -> None:
        if what == "selective":
            raise ValueError(
                "activation_checkpointing 'selective': diffusers' networks take 'none' or 'full'"
            )
        if what == "full":
            self.network.enable_gradient_checkpointing()
        else:
            self.network.disable_gradient_checkpointing()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that ``from_pretrained`` of the network's class reads. All ranks call this; rank 0
        writes. Of a sharded network all ranks raise its error where it cannot.
        """
        network: Any = self.network
        tensors: Any = None
        if isinstance(self, FSDPModule):
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            tensors = get_model_state_dict(network, options=options)

        def write() -> None:
            whole = network
            if tensors is not None:
                whole = type(network).from_config(network.config)
                whole.load_state_dict(tensors, assign=True)
            whole.save_pretrained(str(folder))

        if tensors is not None:
            on_rank_zero(write)
        elif is_rank_zero():
            write()


class CosmosAdapter(DiffusersAdapter):
    """diffusers' Cosmos network: of Predict1 and Transfer1's base (EDM), or of Predict2 and Predict2.5
    (rectified flow in TrigFlow's coordinate).

    The first generation has learnable positions; its given frames are augmented, and fps stretches its
    temporal positions, as in the official networks. diffusers takes one fps and one padding mask for a batch:
    samples that differ in them are evaluated one by one, under FSDP all. The text projection stays frozen in
    all roles.

    Args:
        network: the network. One with one more channel than the latent has that for the mask of given frames,
            and can be given some.
        schedule: the coordinate it was trained in; None: EDM of the first generation, else rectified flow.
        timestep_scale: multiplies c_noise before the network embeds it.
        clean_condition_times: given frames have a noise level of their own, of almost zero; None: not in the
            first generation.
    """

    def __init__(
        self,
        network: CosmosTransformer3DModel,
        schedule: EDM | TrigFlow | None = None,
        *,
        timestep_scale: float = 1.0,
        clean_condition_times: bool | None = None,
    ) -> None:
        config = network.config
        first = config.extra_pos_embed_type == "learnable"
        schedule = schedule or (EDM() if first else TrigFlow())
        shown = augmented_frames if first else clean_frames
        super().__init__(
            network,
            schedule,
            blocks=[f"transformer_blocks.{i}" for i in range(config.num_layers)],
            width=config.num_attention_heads * config.attention_head_dim,
            patch=tuple(config.patch_size),
            given_frames=shown if config.in_channels == config.out_channels + 1 else None,
            clean_condition_times=not first if clean_condition_times is None else clean_condition_times,
            frozen=["crossattn_proj"] if config.use_crossattn_projection else [],
        )
        self.timestep_scale = timestep_scale
        self.stretches = first

    @property
    def dtype(self) -> torch.dtype:
        """That of the patch embedding; learnable positions may be kept in fp32."""
        dtype: torch.dtype = self.network.patch_embed.proj.weight.dtype
        return dtype

    def takes_together(self, x: Tensor, told: Mapping[str, Any]) -> bool:
        """See :meth:`Adapter.takes_together`: where fps, if it is read, and padding are the same."""
        names = ("fps", "padding_mask") if self.stretches else ("padding_mask",)
        values = [told[name] for name in names if told.get(name) is not None]
        return not values or not (isinstance(self, FSDPModule) or any(map(_differ, values)))

    def predict(
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        text: Tensor,
        hint: Tensor | None = None,
        fps: Tensor | None = None,
        padding_mask: Tensor | None = None,
        condition_mask: Tensor | None = None,
        image_context: Tensor | None = None,
        **unread: Any,
    ) -> Tensor:
        """See :meth:`Adapter.predict`. ``image_context`` [B, N, D] is what networks with
        ``img_context_dim_in`` attend to beside the text; None: zeros.

        Raises:
            ValueError: there is a control, which this network has no branch for.
        """
        _refuse_control(self, hint)
        fps = fps if self.stretches else None
        config = self.network.config
        b, _, t, h, w = x.shape
        if self.given_frames is not None and condition_mask is None:
            condition_mask = x.new_zeros(b, 1, t, h, w)
        if padding_mask is None:
            padding_mask = x.new_zeros(1, 1, h, w)
        times = self.timestep_scale * c_noise
        context: Any = text
        if config.img_context_dim_in:
            size = (b, config.img_context_num_tokens, config.img_context_dim_in)
            context = (text, text.new_zeros(size) if image_context is None else image_context)
        output: Tensor = self.network(
            x,
            times if times.ndim == 1 else times[:, None, :, None, None],
            context,
            fps=None if fps is None else fps[:1],
            condition_mask=condition_mask,
            padding_mask=padding_mask[:1],
            return_dict=False,
        )[0]
        return output


class WanAdapter(DiffusersAdapter):
    """diffusers' Wan network, a rectified flow (arXiv 2503.20314).

    Args:
        network: one that takes the noisy latent alone, of text to video, or of Wan 2.2's text and image to
            video.
        schedule: None: rectified flow with shift 5, which Wan uses at 720p; at 480p it is 3.
        given_frames: it can be given leading frames, with a noise level of their own: Wan 2.2's
            ``expand_timesteps``.

    Raises:
        ValueError: the network takes more than the latent, as Wan's image-to-video networks do.
    """

    def __init__(
        self,
        network: WanTransformer3DModel,
        schedule: TrigFlow | None = None,
        *,
        given_frames: bool = False,
    ) -> None:
        config = network.config
        outputs = config.out_channels or config.in_channels
        if config.in_channels != outputs:
            raise ValueError(
                f"this Wan network takes {config.in_channels} channels for a latent of {outputs}: put what "
                "it reads beside the latent together in the predict of an Adapter of your own"
            )
        super().__init__(
            network,
            schedule or TrigFlow(),
            blocks=[f"blocks.{i}" for i in range(config.num_layers)],
            width=config.num_attention_heads * config.attention_head_dim,
            patch=tuple(config.patch_size),
            given_frames=clean_frames if given_frames else None,
            clean_condition_times=True,
        )

    @property
    def dtype(self) -> torch.dtype:
        """That of the patch embedding; modulation tables and norms may be kept in fp32."""
        dtype: torch.dtype = self.network.patch_embedding.weight.dtype
        return dtype

    def predict(
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        text: Tensor,
        hint: Tensor | None = None,
        image: Tensor | None = None,
        **unread: Any,
    ) -> Tensor:
        """See :meth:`Adapter.predict`. ``image`` [B, N, D] is the embedding of an image, where the network
        attends to one.

        Raises:
            ValueError: there is a control, which this network has no branch for.
        """
        _refuse_control(self, hint)
        times = WAN_TIMES * c_noise
        if times.ndim == 2:  # of each frame, and all of its tokens
            _, frames, rows, columns, _ = self.feature(x)
            times = times[:, :: self.patch[0]].repeat_interleave(rows * columns, dim=1)
            assert times.shape[1] == frames * rows * columns
        output: Tensor = self.network(x, times, text, encoder_hidden_states_image=image, return_dict=False)[0]
        return output


def adapt(network: nn.Module, **options: Any) -> DiffusersAdapter:
    """The adapter of a network of diffusers; ``options`` are those of its class.

    Raises:
        TypeError: there is none for this class.
    """
    for kind, adapter in ((CosmosTransformer3DModel, CosmosAdapter), (WanTransformer3DModel, WanAdapter)):
        if isinstance(network, kind):
            made: DiffusersAdapter = adapter(network, **options)
            return made
    raise TypeError(
        f"{type(network).__name__} has no adapter here: write one, a subclass of cosmos_distill.Adapter"
    )


def _differ(values: Tensor) -> bool:
    return bool((values != values[:1]).any())


def _refuse_control(adapter: Adapter, hint: Tensor | None) -> None:
    if hint is not None:
        raise ValueError(f"{type(adapter).__name__}: this network takes no control, but the data have a hint")
