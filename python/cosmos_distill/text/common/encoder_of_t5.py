"""T5's encoder, and UMT5's: padded to a fixed number of tokens, zero behind the prompt.

As in Cosmos-Transfer1's pipeline (T5-11B, 512 x 1024) and in Wan's (UMT5-XXL, 512 x 4096): the encoder sees
the padding masked, and what it says of padding is set to zero. A prompt that is longer is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_distill.text import tokenizer_folder
from cosmos_distill.text.common import folders

_TIED = ("shared.weight", "encoder.embed_tokens.weight")


class T5:
    """The encoder half of a T5 or UMT5.

    Args:
        network: transformers' class.
        configured: Its configuration's.
    """

    def __init__(
        self,
        network: Callable[[Any], Any],
        configured: Any,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        tokens: int,
    ) -> None:
        self.tokens = tokens
        said = folders.configuration(configured, folder)
        state = folders.state(folder)
        for name in _TIED:  # one table under two names, of which a file may hold one
            state.setdefault(name, next((state[n] for n in _TIED if n in state), torch.empty(0)))
        self._model = folders.load(lambda: network(said), state, folder, device, dtype)
        self._tokenizer = folders.tokenizer(tokenizer_folder(folder))
        self._device = device
        self.channels: int = said.d_model

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt, the end's included."""
        return [len(ids) for ids in self._tokenizer(list(prompts)).input_ids]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """[B, tokens, channels], zero behind each prompt."""
        found = self._tokenizer(
            list(prompts), padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        mask = found.attention_mask.to(self._device)
        states = self._model(found.input_ids.to(self._device), attention_mask=mask).last_hidden_state
        return torch.where(mask[..., None].bool(), states, 0)
