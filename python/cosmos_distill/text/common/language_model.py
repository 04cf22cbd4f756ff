"""Cosmos-Reason1 as a text encoder: all layers of a Qwen2.5-VL's language model, side by side.

As in Cosmos-Predict2.5 (its text encoder, and ``_get_prompt_embeds`` of diffusers' Cosmos2_5 pipelines): the
prompt goes through the chat template under a fixed system text; padding follows, unmasked, since a causal
network's earlier tokens cannot see it; the hidden states behind each of the layers are normalised over their
channels and concatenated: 28 x 3584 = 100,352, of which the denoiser's frozen projection makes 1,024.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cosmos_distill.text import tokenizer_folder
from cosmos_distill.text.common import folders

SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."
"""What all published embeddings were made under."""
EPSILON = 1e-8
_LANGUAGE = re.compile(r"^(?:model\.language_model|language_model\.model|model)\.(?!visual\.)")


class Reason1:
    """The language model of a Qwen2.5-VL; its eyes are not loaded."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, tokens: int) -> None:
        from transformers import Qwen2_5_VLConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

        said = folders.configuration(Qwen2_5_VLConfig, folder).text_config
        said._attn_implementation = "sdpa"
        state = folders.state(folder)
        state = {_LANGUAGE.sub("", name): value for name, value in state.items() if _LANGUAGE.match(name)}
        self._model = folders.load(lambda: Qwen2_5_VLTextModel(said), state, folder, device, dtype)
        self._tokenizer = folders.tokenizer(tokenizer_folder(folder))
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"{tokenizer_folder(folder)}: its tokenizer has no chat template: download it, too"
            )
        pad = self._tokenizer.pad_token_id
        self._pad: int = self._tokenizer.eos_token_id if pad is None else pad
        self._device, self._dtype, self.tokens = device, dtype, tokens
        self.layers: int = said.num_hidden_layers
        self.channels: int = self.layers * said.hidden_size

    def _ids(self, prompt: str) -> list[int]:
        said = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": [{"type": "text", "text": prompt}]},
        ]
        text = self._tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=False, add_vision_id=False
        )
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt in its template."""
        return [len(self._ids(prompt)) for prompt in prompts]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """[B, tokens, layers x width]."""
        rows = [(ids + [self._pad] * self.tokens)[: self.tokens] for ids in map(self._ids, prompts)]
        ids = torch.tensor(rows, device=self._device)
        states = self._model(ids, output_hidden_states=True, use_cache=False).hidden_states[1:]
        out = torch.empty(*ids.shape, self.channels, dtype=self._dtype, device=self._device)
        for part, state in zip(out.split(states[0].shape[-1], dim=-1), states, strict=True):
            part.copy_((state - state.mean(-1, keepdim=True)) / (state.std(-1, keepdim=True) + EPSILON))
        return out
