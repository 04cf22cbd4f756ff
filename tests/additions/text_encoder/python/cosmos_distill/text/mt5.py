"""``mt5``: the encoder of mT5, which differs from UMT5's in sharing its position biases among layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_distill.text import TextEncoder, TextEncoderKind

if TYPE_CHECKING:
    import torch


def _build(folder: Path, device: torch.device, dtype: torch.dtype, tokens: int) -> TextEncoder:
    from transformers import MT5Config, MT5EncoderModel

    from cosmos_distill.text.common.encoder_of_t5 import T5

    return T5(MT5EncoderModel, MT5Config, folder, device, dtype, tokens)


ENCODER = TextEncoderKind(model_type="mt5", widths=("d_model",), build=_build)
