"""Types and ranges of the numbers that configurations hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cosmos_distill.config.controls import CONTROLS
from cosmos_distill.config.folders import options
from cosmos_distill.ranges import Range

Scale = Literal["smoke", "mini", "7b"]
if TYPE_CHECKING:
    Control = str
    TokenizerName = str
else:  # one file each: see cosmos_distill.controls and cosmos_distill.tokenizers
    Control = Literal[CONTROLS] | str
    TokenizerName = Literal[options("tokenizers")]
# A control is one by name, or several with weights: see cosmos_distill.config.controls.
Strength = Literal["none", "very_low", "low", "medium", "high", "very_high"]
"""The official presets of how much of a video its edge or vis control leaves out."""
Precision = Literal["fp32", "bf16"]
Drawn = Literal["fp32", "tf32", "bf16"]
"""What networks that draw compute in: weights and their products in fp32; products rounded to TF32, by an
accelerator that has it; all of it in bf16."""
Stored = Literal["fp32", "bf16", "fp16"]
"""Types that weights are stored in; nothing trains in fp16."""
Exported = Literal["fp32", "bf16", "fp16", "fp8"]
"""Types that a student is written in. Of fp8 the matrices are, with a scale for each of their rows; it
computes in bf16."""
UnconditionalFrames = Literal["kept", "zeroed"]

# Ranges end where a run would take decades or a batch no machine's memory.
Steps = Annotated[int, Range(1, 10**8)]
"""Of a training stage."""
Start = Annotated[int, Range(0, 10**12)]
"""Steps until something begins."""
Interval = Annotated[int, Range(0, 10**12, note="0: never")]
"""Steps from one time to the next."""
Seed = Annotated[int, Range(0, 2**64 - 1)]
Evaluations = Annotated[int, Range(1, 1000)]
"""Steps of a sampler."""
BatchSize = Annotated[int, Range(1, 2**20)]
GivenFrames = Annotated[int, Range(0, 2**16)]
"""Leading latent frames that a network is shown."""
ClipFrames = tuple[GivenFrames, ...]
"""Those of clip 0, 1, 2, ..., again from the first number after the last."""
PixelSize = Annotated[int, Range(1, 2**16)]
Ranks = Annotated[int, Range(1, 2**16)]
SigmaData = Annotated[float, Range(1e-3, 1e3)]
"""Standard deviation of the latents that a network is given."""
Rate = Annotated[float, Range(0, 10, above=True)]
"""A learning rate: about what a weight moves in a step of Adam."""
Decay = Annotated[float, Range(0, 1, below=True)]
"""Share of an average that remains at an update."""
Factor = Annotated[float, Range(0, 100)]
Weight = Annotated[float, Range(0, 1e6)]
"""Of a term in a loss."""
Share = Annotated[float, Range(0, 1)]
"""A probability."""
