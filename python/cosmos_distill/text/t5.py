"""``t5``: the encoder of T5-11B, Cosmos-Transfer1's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_distill.text import TextEncoder, TextEncoderKind

if TYPE_CHECKING:
    import torch


def _build(folder: Path, device: torch.device, dtype: torch.dtype, tokens: int) -> TextEncoder:
    from transformers import T5Config, T5EncoderModel

    from cosmos_distill.text.common.encoder_of_t5 import T5

    return T5(T5EncoderModel, T5Config, folder, device, dtype, tokens)


ENCODER = TextEncoderKind(model_type="t5", widths=("d_model",), build=_build)
