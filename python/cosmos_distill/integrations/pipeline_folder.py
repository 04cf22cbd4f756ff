"""Writing a folder that ``DiffusionPipeline.from_pretrained`` opens where this package is not installed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from cosmos_distill.families import InDiffusers
from cosmos_distill.integrations.few_step import FewStepScheduler
from cosmos_distill.ops.integrations import diffusers as _operators

_operators.do_without_torchvision()

SHARD = "10GB"


@dataclass(frozen=True)
class Sampling:
    """How the network is sampled, in terms of rectified flow."""

    shift: float
    """Of the stock scheduler's grid."""
    times: Sequence[float] | None
    """Of a few-step student; None: it is sampled in many steps."""
    fresh_noise: bool = False

    def stock(self) -> UniPCMultistepScheduler:
        """The scheduler of diffusers whose grid and updates are nearest, for whoever has nothing else: of
        first order, in which it is exact for one step."""
        return UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=self.shift,
            solver_order=1 if self.times is not None else 2,
        )  # fmt: skip

    def ours(self) -> FewStepScheduler | None:
        """The student's own; None: it is sampled in many steps."""
        return None if self.times is None else FewStepScheduler(list(self.times), self.fresh_noise)


def write(
    folder: Path,
    target: InDiffusers,
    weights: Mapping[str, Mapping[str, Tensor]],
    sampling: Sampling,
    vae: Callable[[Path], None],
    text: tuple[Path, Path] | None,
) -> None:
    """Fill ``folder``, which exists and is empty.

    Args:
        weights: Component -> name there -> tensor.
        vae: Writes the autoencoder into a folder.
        text: Folders of the encoder and of its tokenizer, which may be the same; None: whoever opens the
            pipeline gives both, or embeddings.
    """
    index: dict[str, Any] = {"_class_name": target.pipeline, "_diffusers_version": diffusers.__version__}
    for component, (kind, configuration) in target.networks.items():
        with torch.device("meta"):
            network = getattr(diffusers, kind).from_config(dict(configuration))
        network.load_state_dict(dict(weights[component]), strict=True, assign=True)
        save(network, folder / component)
        index[component] = ["diffusers", kind]
    sampling.stock().save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", UniPCMultistepScheduler.__name__]
    if (ours := sampling.ours()) is not None:
        ours.save_pretrained(folder / "few_step")
    vae(folder / "vae")
    index["vae"] = ["diffusers", "AutoencoderKLWan"]
    index |= {name: [None, None] for name in ("text_encoder", "tokenizer", "safety_checker")}
    if text is not None:
        encoder, tokenizer = text
        copy(encoder, folder / "text_encoder")
        copy(tokenizer, folder / "tokenizer", weights=False)
        index["text_encoder"] = ["transformers", _said(encoder / "config.json", "architectures")[0]]
        index["tokenizer"] = ["transformers", _said(tokenizer / "tokenizer_config.json", "tokenizer_class")]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def save(network: Any, folder: Path) -> None:
    """A network of diffusers by its own means, but with permissions as the user's files have them: those of
    weights let only their owner read."""
    network.save_pretrained(folder, max_shard_size=SHARD)
    mode = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def _said(file: Path, key: str) -> Any:
    """What a file of transformers says of itself.

    Raises:
        ValueError: nothing.
    """
    said = json.loads(file.read_text(encoding="utf-8"))
    if not (found := said.get(key)):
        raise ValueError(f"{file} has no {key}, by which a pipeline knows what to open it with")
    return found


def copy(source: Path, target: Path, *, weights: bool = True) -> None:
    """Files of a folder, not of folders in it, by hard links where the file system has them.

    Args:
        weights: Those of weights, too.
    """
    target.mkdir()
    for file in sorted(source.iterdir()):
        if not file.is_file() or (not weights and file.suffix in (".safetensors", ".bin", ".pt")):
            continue
        whole = file.resolve()  # a hub's cache holds links
        try:
            os.link(whole, target / file.name)
        except OSError:
            shutil.copyfile(whole, target / file.name)
