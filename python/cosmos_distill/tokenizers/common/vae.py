"""Autoencoders in diffusers' format: a folder with config.json and safetensors weights, which run nothing.

diffusers' own loader follows an index out of the folder, and a configuration to other packages. This one
reads the two files, and takes from diffusers the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_distill.files import read_json

if TYPE_CHECKING:
    import torch

    from cosmos_distill.arrays import named

CONFIG = "config.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def is_one(folder: Path) -> bool:
    """Whether ``folder`` is in this format."""
    return (folder / CONFIG).is_file() and any(folder.glob("*.safetensors"))


def class_of(folder: Path) -> str | None:
    """The class of diffusers that the configuration in ``folder`` is of, empty where it names none; None
    without a configuration.

    Raises:
        ValueError: it is illegible.
    """
    if not (folder / CONFIG).is_file():
        return None
    said = read_json(folder / CONFIG)
    return str(said.get("_class_name", "")) if isinstance(said, dict) else ""


def files(folder: Path) -> list[Path]:
    """The configuration and the weights.

    Raises:
        ValueError: it is unclear which weights are meant, or an index leads elsewhere.
    """
    from cosmos_distill.arrays import named

    whole = folder / _WEIGHTS
    return [folder / CONFIG, *([whole] if whole.is_file() else named.shards(folder))]


def check(kind: Any, folder: Path) -> None:
    """Hold the headers of the weights against the configuration. Raises as :func:`load` does."""
    _fitting(kind, folder)


def load(kind: Any, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The autoencoder of class ``kind``, frozen.

    Raises:
        OSError: a file cannot be opened.
        ValueError: another class, or weights that do not fit the configuration.
    """
    import torch

    said, state = _fitting(kind, folder)
    model = kind.from_config(said)
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    # Not diffusers' own `to`, which warns of a type that it then keeps everywhere.
    return torch.nn.Module.to(model, device=device, dtype=dtype).eval().requires_grad_(False)


def _fitting(kind: Any, folder: Path) -> tuple[dict[str, Any], named.State]:
    """Configuration and tensors (mapped, not read), which go together."""
    import torch

    from cosmos_distill.arrays import named

    configuration, *weights = files(folder)
    said = read_json(configuration)
    if not isinstance(said, dict) or (named_class := said.get("_class_name", kind.__name__)) != kind.__name__:
        other = f", but of {named_class}" if isinstance(said, dict) else ""
        raise ValueError(f"{configuration} is not that of {kind.__name__}{other}")
    said = {key: value for key, value in said.items() if not key.startswith("_")}
    state: named.State = {}
    for file in weights:
        state |= named.load(file)
    try:
        with torch.device("meta"):  # memory is asked for when the sizes are known to be those of the weights
            wanted = kind.from_config(said).state_dict()
        if wrong := [n for n, value in wanted.items() if n not in state or state[n].shape != value.shape]:
            raise ValueError(f"{wrong[0]} is missing or of another size, and {len(wrong) - 1} more")
    except Exception as error:  # a configuration can say anything, and diffusers believes it
        raise ValueError(
            f"{folder}: weights and configuration do not fit ({error}): download it again"
        ) from error
    return said, state
