"""Networks of the user's that look at frames: depth, segments, people. Controls are made of what they see.

A network is a folder as ``save_pretrained`` of transformers writes it (``config.json``, safetensors, what its
image processor needs). Nothing is downloaded, code in a folder is not run, and pickled weights are not read.
Torch-free at import; nothing here needs torchvision but SAM 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_distill.data.errors import DataError
from cosmos_distill.files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

INSTALL = "pip install 'cosmos-distill[vision]'"
BATCH = 8
"""Frames that go through a network at once."""


def configuration(folder: Path) -> dict[str, Any]:
    """What ``config.json`` of a folder says.

    Raises:
        DataError: it is missing or illegible, or asks for what is not loaded.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise DataError(
            f"{folder} has no config.json: give the folder of a model as transformers saves it, with its "
            "weights in safetensors and its preprocessor_config.json"
        )
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a JSON object")
    for key, means in (
        ("auto_map", "code of its own"),
        ("use_pretrained_backbone", "weights of another model"),
    ):
        if found.get(key):
            raise DataError(f"{path} asks for {means} ({key}), which is not loaded")
    return found


def check(folder: Path, what: str, architectures: Sequence[str]) -> None:
    """Look at a folder's small files before any work.

    Args:
        what: The model that is wanted, for the message.
        architectures: Ends of the class names, as ``ForDepthEstimation``, one of which the folder must have.

    Raises:
        DataError: transformers is not installed, or the folder holds no such model.
    """
    said = configuration(folder)
    names = said.get("architectures") or []
    if not any(str(name).endswith(tuple(architectures)) for name in names):
        found = ", ".join(map(str, names)) or "a model that does not say what it is"
        raise DataError(f"{folder} holds {found}: {what} is wanted")
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{folder} has no weights in safetensors: download them, too, or save the model again"
        )
    if find_spec("transformers") is None:
        raise DataError(f"{what} needs transformers to run: {INSTALL}")


@contextmanager
def loading(folder: Path, what: str) -> Iterator[Any]:
    """The library transformers, while a folder is loaded.

    Raises:
        DataError: it is not installed, or cannot load the folder.
    """
    try:
        import transformers
        from safetensors import SafetensorError
    except ImportError as error:
        raise DataError(f"{what} needs transformers to run: {INSTALL}") from error
    said = transformers.logging
    before, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()  # processors say at length that they do without torchvision
    said.disable_progress_bar()
    try:
        yield transformers
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        raise DataError(
            f"{folder} holds no {what} that transformers can load: {lines[0] if lines else error!r}"
        ) from error
    finally:
        said.set_verbosity(before)
        if bars:
            said.enable_progress_bar()


SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""How a folder is loaded."""


def pipeline(transformers: Any, task: str, kind: str, folder: Path) -> Any:
    """transformers' pipeline of the model in a folder, of the automatic class ``kind``."""
    model = getattr(transformers, kind).from_pretrained(folder, use_safetensors=True, **SAFE)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **SAFE)
    return transformers.pipeline(task, model=model, image_processor=processor, device=device())


def device() -> str:
    """Where networks look at frames: this rank's accelerator, if there is one."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def pictures(frames: np.ndarray) -> list[Any]:
    """Frames, RGB uint8 [F, H, W, 3], as Pillow's."""
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]
