"""How pixels lie in memory: channels last as decoders have them, channels first as networks do."""

from __future__ import annotations

import numpy as np
import torch


def to_video(frames: np.ndarray) -> torch.Tensor:
    """uint8 [B, F, H, W, 3] -> [B, 3, F, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 4, 1, 2, 3)))


def to_frames(video: torch.Tensor) -> np.ndarray:
    """uint8 [B, 3, F, H, W] -> [B, F, H, W, 3]."""
    return np.ascontiguousarray(video.cpu().numpy().transpose(0, 2, 3, 4, 1))
