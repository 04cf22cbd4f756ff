"""Networks that the user gives to a metric, from this machine's disk: nothing is downloaded.

A network is one of:

- a folder as ``save_pretrained`` of transformers writes it (``config.json``, ``model.safetensors``), built by
  transformers' own classes. Code in the folder is not run, and pickled weights are not read;
- a TorchScript file, such as the published ``inception-2015-12-05.pt`` and ``i3d_torchscript.pt``. It runs
  what it contains, so only the file that the user names is opened. It gets pixels 0..255 in fp32, and
  ``rescale``, ``resize`` and ``return_features`` set where its ``forward`` has them;
- for FID, the weights of Inception in torch-fidelity's format, run by torchmetrics.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cosmos_distill.data.errors import DataError
from cosmos_distill.eval.chunks import frames_of

Kind = Literal["image", "video", "depth", "segmentation"]
Network = Callable[[Tensor], Tensor]
"""Of pixels 0..255, uint8: frames [N, 3, H, W], or clips [B, 3, F, H, W] where the kind is video."""
BATCH = 32
"""Frames at once, at most."""
_PIXELS = 2**22
"""Of all frames at once: four at 704 x 1280."""
_INSTALL = "pip install 'cosmos-distill[metrics]'"
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@lru_cache(maxsize=4)
def network(path: Path, kind: Kind, device: torch.device) -> Network:
    """The network at ``path``.

    Returns features [N, D] for images, [B, W, D] of W windows in time for videos, depth [N, H, W] or labels
    int64 [N, H, W] of the frames' size.

    Raises:
        DataError: there is none of that kind; the message names the file.
    """
    if path.is_dir():
        return _from_folder(path, kind, device)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; a network for this metric is looked for there")
    if _is_torchscript(path):
        return _from_torchscript(path, kind, device)
    if kind == "image":
        return _inception(path, device)
    raise DataError(f"{path} is neither a TorchScript file nor a folder of transformers")


def by_frame(run: Network, video: Tensor, device: torch.device) -> Tensor:
    """Results of every frame of ``video`` uint8 [B, 3, F, H, W], on the CPU, [B, F, ...]."""
    found = [run(part).cpu() for part in frames_of(video, batch_of(video), device)]
    return torch.cat(found).unflatten(0, (len(video), -1))


def batch_of(video: Tensor) -> int:
    """How many frames of ``video`` [B, 3, F, H, W] a network is given at once."""
    return max(1, min(BATCH, _PIXELS // video[0, 0, 0].numel()))


# --- TorchScript
# ---------------------------------------------------------------------------------------------


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/", 1)[-1].startswith("code/") for name in archive.namelist())


def _from_torchscript(path: Path, kind: Kind, device: torch.device) -> Network:
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise DataError(f"{path} is not a TorchScript file that this torch reads: {error}") from error
    known = {argument.name for argument in module.forward.schema.arguments}
    options = {name: True for name in ("rescale", "resize", "return_features") if name in known}

    def run(pixels: Tensor) -> Tensor:
        found = module(pixels.float(), **options)
        if not isinstance(found, Tensor) or len(found) != len(pixels):
            raise DataError(f"{path} does not return one tensor with a row for each input")
        if kind == "image":
            return found.flatten(1)
        if kind == "video":
            return found.flatten(1)[:, None]
        return _maps(found, pixels.shape[-2:], kind, path)

    return run


# --- transformers
# --------------------------------------------------------------------------------------------

_CLASSES = {
    "image": "AutoModel",
    "video": "AutoModel",
    "depth": "AutoModelForDepthEstimation",
    "segmentation": "AutoModelForSemanticSegmentation",
}


def _from_folder(path: Path, kind: Kind, device: torch.device) -> Network:
    config = _json(path / "config.json", required=True)
    for key, means in (
        ("auto_map", "code of its own"),
        ("use_pretrained_backbone", "weights of another model"),
    ):
        if config.get(key):
            raise DataError(f"{path / 'config.json'} asks for {means} ({key}), which is not loaded")
    try:
        import transformers
    except ImportError as error:
        raise DataError(f"a network in a folder needs transformers: {_INSTALL}") from error
    try:
        model = getattr(transformers, _CLASSES[kind]).from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(f"{path} holds no network for {kind} that transformers can load: {first}") from error
    model = model.requires_grad_(False).eval().to(device)
    prepare = _Preparation(path, config)

    if kind == "video":
        frames = int(config.get("num_frames", 16))

        def clips(pixels: Tensor) -> Tensor:
            windows = _windows(pixels, frames)
            count, b = windows.shape[1], len(pixels)
            x = prepare(windows.flatten(0, 1).transpose(1, 2).flatten(0, 1))
            found = model(pixel_values=x.unflatten(0, (-1, frames))).last_hidden_state
            return found.mean(1).unflatten(0, (b, count))

        return clips

    def images(pixels: Tensor) -> Tensor:
        found = model(pixel_values=prepare(pixels))
        if kind == "image":
            pooled = getattr(found, "pooler_output", None)
            return (found.last_hidden_state.mean(1) if pooled is None else pooled).flatten(1)
        maps = found.predicted_depth if kind == "depth" else found.logits
        return _maps(maps, pixels.shape[-2:], kind, path)

    return images


def _windows(video: Tensor, frames: int) -> Tensor:
    """``video`` [B, 3, F, H, W] cut into windows of ``frames`` frames in a row, [B, W, 3, frames, H, W];
    what is left at the end is not used. A shorter clip is one window, its frames repeated evenly."""
    count = video.shape[2] // frames
    if count == 0:
        index = torch.linspace(0, video.shape[2] - 1, frames).round().long()
        return video[:, None, :, index]
    return video[:, :, : count * frames].unflatten(2, (count, frames)).transpose(1, 2)


class _Preparation:
    """Scaling and normalisation as the folder's ``preprocessor_config.json`` says, else ImageNet's at the
    network's own size."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        said = _json(path / "preprocessor_config.json")
        self.mean = torch.tensor(said.get("image_mean", _IMAGENET[0])).view(3, 1, 1)
        self.std = torch.tensor(said.get("image_std", _IMAGENET[1])).view(3, 1, 1)
        size = said.get("size", config.get("image_size", 224))
        size = size if isinstance(size, dict) else {"height": _first(size), "width": _last(size)}
        self.height, self.width = size.get("height"), size.get("width")
        self.short = size.get("shortest_edge")
        crop = said.get("crop_size")
        if said.get("do_center_crop") and isinstance(crop, dict) and crop.get("height"):
            # A crop would not look at the borders: the whole frame is scaled to its size instead.
            self.height, self.width = crop["height"], crop["width"]
        if said.get("keep_aspect_ratio") and self.height:
            self.short, self.height = min(self.height, self.width), None
        self.multiple = int(said.get("ensure_multiple_of", 1))

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> what the network expects."""
        size = self._size(*frames.shape[-2:])
        parts = [
            F.interpolate(part.float() / 255, size, mode="bicubic", antialias=True).clamp(0, 1)
            for part in frames.split(BATCH)
        ]
        x = torch.cat(parts)
        return (x - self.mean.to(x.device)) / self.std.to(x.device)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.height and self.width:
            return int(self.height), int(self.width)
        scale = (self.short or min(height, width)) / min(height, width)
        rounded = [max(1, round(n * scale / self.multiple)) * self.multiple for n in (height, width)]
        return rounded[0], rounded[1]


def _first(size: Any) -> Any:
    return size[0] if isinstance(size, list) else size


def _last(size: Any) -> Any:
    return size[-1] if isinstance(size, list) else size


def _json(path: Path, required: bool = False) -> dict[str, Any]:
    if not path.is_file() and not required:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a JSON object")
    return found


# --- Inception through torchmetrics
# ---------------------------------------------------------------------------


def _inception(path: Path, device: torch.device) -> Network:
    try:
        # torch-fidelity unpickles whatever the file contains: see first that it contains tensors only.
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} is neither TorchScript nor weights that contain tensors only") from error
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
    except ImportError as error:
        raise DataError(f"Inception's weights need torchmetrics and torch-fidelity: {_INSTALL}") from error
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DataError(f"{path} does not hold Inception's weights in torch-fidelity's format") from error
    net = net.requires_grad_(False).to(device)
    return lambda pixels: net(pixels).flatten(1)


def _maps(found: Tensor, size: torch.Size, kind: Kind, path: Path) -> Tensor:
    """Depth [N, H, W] or labels [N, H, W] at the frames' size."""
    if kind == "depth":
        depth = found.squeeze(1) if found.dim() == 4 else found
        if depth.dim() != 3:
            raise DataError(f"{path} returns {list(found.shape)} for frames, not depth [N, H, W]")
        return F.interpolate(depth.float()[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    if found.dim() != 4:
        raise DataError(f"{path} returns {list(found.shape)} for frames, not class scores [N, C, H, W]")
    # A frame at a time: scores of every class at full size are far larger than what they tell.
    parts = (F.interpolate(x.float(), size, mode="bilinear", align_corners=False) for x in found.split(1))
    return torch.cat([scores.argmax(1) for scores in parts])
