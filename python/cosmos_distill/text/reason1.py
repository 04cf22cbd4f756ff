"""``reason1``: Cosmos-Reason1, a Qwen2.5-VL, of Cosmos-Predict2.5 and Transfer2.5."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_distill.text import TextEncoder, TextEncoderKind

if TYPE_CHECKING:
    import torch


def _build(folder: Path, device: torch.device, dtype: torch.dtype, tokens: int) -> TextEncoder:
    from cosmos_distill.text.common.language_model import Reason1

    return Reason1(folder, device, dtype, tokens)


ENCODER = TextEncoderKind(
    model_type="qwen2_5_vl",
    widths=("num_hidden_layers", "hidden_size"),  # all layers side by side
    inside="text_config",
    build=_build,
)
