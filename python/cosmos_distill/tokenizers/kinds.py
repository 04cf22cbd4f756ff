"""What is known of each kind of tokenizer without opening one. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TokenizerKind:
    """How a kind of tokenizer turns clips into latents."""

    name: str
    title: str
    time: int
    """Frames per latent frame, after the first, which is one of its own."""
    space: int
    """Pixels per side of a latent element."""
    channels: int = 16
    chunk: int | None = None
    """Most frames of a clip that are coded at once; a clip of several such chunks has no rest."""
    local: bool = False
    """It runs where clips are read, and turns the pixels of a clip into fp32 all at once."""
    folder: str | None = None
    """What the folder holds that the user has to name; None: it comes with the package."""

    def whole_chunks(self, frames: int) -> bool:
        """Whether clips of ``frames`` frames are cut into chunks without a rest."""
        return self.chunk is not None and frames % self.chunk == 0

    def latent_frames(self, frames: int) -> int:
        """T of the latent of a clip: its first frame alone, then one per ``time`` frames. Of several chunks
        each is such a clip."""
        if self.chunk is not None and self.whole_chunks(frames):
            return frames // self.chunk * (1 + (self.chunk - 1) // self.time)
        return 1 + (frames - 1) // self.time

    def frames(self, latents: int) -> int:
        """Frames of a clip that its first ``latents`` latent frames stand for."""
        return 1 + (latents - 1) * self.time if latents else 0

    def misfit(self, frames: int) -> str | None:
        """Why clips of ``frames`` frames cannot be coded; None if they can."""
        if self.whole_chunks(frames):
            return None
        if (frames - 1) % self.time:
            below = 1 + (frames - 1) // self.time * self.time
            return (
                f"the {self.name} tokenizer needs 1 + a multiple of {self.time} frames; nearest are {below} "
                f"and {below + self.time}"
            )
        if self.chunk is not None and frames > self.chunk:
            return f"the {self.name} tokenizer takes up to {self.chunk} frames, or a multiple of {self.chunk}"
        return None


KINDS: Mapping[str, TokenizerKind] = {
    kind.name: kind
    for kind in (
        TokenizerKind(name="haar", title="Haar", time=2, space=4, local=True),
        TokenizerKind(name="mini-cv4x4x4", title="mini-cv4x4x4", time=4, space=4, local=True),
        TokenizerKind(name="pixels", title="pixels", time=1, space=1, channels=3, local=True),
        TokenizerKind(
            name="cosmos-cv8x8x8", title="Cosmos", time=8, space=8, chunk=121,
            folder="the folder that holds its encoder.jit, decoder.jit and mean_std.pt",
        ),
        TokenizerKind(
            name="wan2.1", title="Wan 2.1", time=4, space=8,
            folder="Wan2.1_VAE.pth, or its folder in diffusers' format (config.json and safetensors weights)",
        ),
    )
}  # fmt: skip
"""Those of :class:`cosmos_distill.config.Data`, by name."""
