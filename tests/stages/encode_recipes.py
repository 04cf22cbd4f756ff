"""Small recipes that encode clips and train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cosmos_distill.config import Data, Encode, Optim, Recipe, Train, Trainer
from cosmos_distill.methods.denoising import Denoising
from cosmos_distill.methods.levels import LogNormal

FRAMES, WINDOWS = 8, 4
"""Of every clip, and windows of five frames in it."""


def recipe(root: Path, kind: str | None = "edge", *, start: str | None = None, **stage: Any) -> Recipe:
    """A recipe that encodes the clips, and with ``start`` one that trains on them for three steps."""
    method = Denoising(student=Optim(lr=1e-3), levels=LogNormal())
    trainer = Trainer(
        max_steps=3, global_batch=4, micro_batch=2, precision="fp32", log_every=1, save_every=0,
        sample_every=0,
    )  # fmt: skip
    stages: dict[str, Any] = {}
    if start != "clips":
        stages["encode"] = Encode(
            **({"variants": WINDOWS, "held_out_variants": WINDOWS, "clips_per_shard": 2} | stage)
        )
    if start is not None:
        stages["train"] = Train(
            method=method, trainer=trainer, clips_from="encode" if start == "shards" else None
        )
    data = Data(
        source="folder", tokenizer="haar", frames=5, height=32, width=32, root=root, max_condition_frames=1
    )
    return Recipe(network="transfer1-smoke", control=kind, data=data, stages=stages)  # type: ignore[arg-type]
