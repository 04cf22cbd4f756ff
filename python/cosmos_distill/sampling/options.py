"""Options of the command line beside a recipe's own. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cosmos_distill.config import GivenFrames, Seed, Stored, Strength
from cosmos_distill.ranges import Checked, Range


@dataclass(frozen=True)
class RunOptions(Checked):
    """How to run, as opposed to what."""

    out: Path | None = None
    """Run folder; runs/<recipe file's name>/<scale>-<control> if left out."""
    only: tuple[str, ...] = ()
    """Run these stages only; the ones they need must be complete."""
    dry_run: bool = False
    """Print the resolved recipe, the state of its stages, sizes, memory plan and launch line; do nothing."""
    traceback: bool = False
    """Show the Python traceback of an error."""


@dataclass(frozen=True)
class SampleOptions(Checked):
    """Draw clips from an exported student.

    Without files of your own, held-out clips of the data the student was made on give prompts, controls and
    the frames to go on from.
    """

    out: Path = Path("samples")
    """Folder for clip-000.mp4, ... and grid.png; of a single clip (--clips 1), an .mp4 file as well."""
    clips: Annotated[int, Range(1, 10**5)] = 8
    """How many; with one control of your own they differ in noise."""
    batch: Annotated[int, Range(1, 2**12)] = 8
    """Clips drawn at once."""
    seed: Seed = 0
    """Of the noise."""
    control: str | None = None
    """Which of the student's controls, and how much each steers: edge, or edge:1,depth:0.5 of a student with
    several branches, whose weights are divided by their sum where that is above 1. Left out: as trained."""
    control_videos: Mapping[str, Path] | None = None
    """Control -> its video or still image, of a student that takes several at once."""
    control_maps: Mapping[str, Path] | None = None
    """Control -> where it steers: a video or still image (white: with its weight, black: not at all), or an
    array [H, W] or [F, H, W] of what multiplies that weight (.npz, .safetensors, .pt)."""
    control_video: Path | None = None
    """Control as a video (edges, blur, depth, ...) or as a still image, used as it is."""
    video: Path | None = None
    """Ordinary video or still image, whose control is computed first (edge, vis and upscale; others by a
    network of yours)."""
    control_models: Mapping[str, Path] | None = None
    """Control -> folder of a model of transformers that computes it (depth, seg, keypoint)."""
    control_strength: Strength = "medium"
    """How much of it that control leaves out: fewer edges, or a stronger blur."""
    start: Path | None = None
    """Image (image to world) or video (video to world) that every clip begins with."""
    condition_frames: GivenFrames | None = None
    """Latent frames given, of it or of held-out clips; left out: 1 of an image, all that were trained of a
    video, none otherwise."""
    windows: Annotated[int, Range(1, 1000)] = 1
    """How many windows long a clip is: each goes on from the last frames of the one before."""
    overlap: GivenFrames | None = None
    """Latent frames that a window goes on from; left out: all that were trained."""
    prompt: str | None = None
    """What the clips show; --text-encoder encodes it, which a student of the mini scale does without."""
    prompts: Path | None = None
    """Text file with a prompt in each line: clip n shows line n, again from the first after the last."""
    text_encoder: Path | None = None
    """Folder of the text encoder that the student was made with, for prompts, and for captions of
    --data-root; its checksums are compared with those that the student's file keeps."""
    prompt_embedding: Path | None = None
    """Embedding of the prompt by the model's text encoder, .safetensors or .npz."""
    negative_prompt: str | None = None
    """Text, or file of it (.txt) or of its embedding, for a teacher's file; left out, the one that it was
    made with."""
    negative_prompt_embedding: Path | None = None
    """Embedding of the negative prompt, for a teacher's file whose guidance had one."""
    data_root: Path | None = None
    """Folder of clips, for a student that was made on a folder."""
    overwrite: bool = False
    """Replace clips of the same names that are in the folder already."""
    tokenizer: Path | None = None
    """Folder of the tokenizer that the student was made with, where that has files; their checksums are
    compared with those that the student's file keeps. TorchScript files in it are programs, and will run."""
    traceback: bool = False
    """Show the Python traceback of an error."""


@dataclass(frozen=True)
class ConsolidateOptions(Checked):
    """Write one network of a training checkpoint as one safetensors file.

    CHECKPOINT is a folder checkpoints/step_... of a training stage, saved by any number of ranks. One
    process does it, without a GPU.
    """

    role: str = "student"
    """Which trained network: student, fake_score, ..."""
    weights: Literal["auto", "ema", "network"] = "auto"
    """Its average or its own; auto: the average where there is one, as at the end of the stage."""
    precision: Stored | None = None
    """Of the weights in the file; None: the network's. An average is fp32 until then."""
    overwrite: bool = False
    """Replace OUT if it exists."""
    traceback: bool = False
    """Show the Python traceback of an error."""
