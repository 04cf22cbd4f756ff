"""``umt5``: the encoder of UMT5-XXL, Wan's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_distill.text import TextEncoder, TextEncoderKind

if TYPE_CHECKING:
    import torch


def _build(folder: Path, device: torch.device, dtype: torch.dtype, tokens: int) -> TextEncoder:
    from transformers import UMT5Config, UMT5EncoderModel

    from cosmos_distill.text.common.encoder_of_t5 import T5

    return T5(UMT5EncoderModel, UMT5Config, folder, device, dtype, tokens)


ENCODER = TextEncoderKind(model_type="umt5", widths=("d_model",), build=_build)
