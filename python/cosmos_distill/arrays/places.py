"""Where in a folder the weights of a network lie. Nothing is opened but an index of shards; torch-free."""

from __future__ import annotations

from pathlib import Path

from cosmos_distill.files import inside

_SUFFIXES = (".safetensors", ".pt", ".pth")
DISTRIBUTED = ".metadata"
"""File that makes a folder a checkpoint of torch.distributed.checkpoint."""


def weights_in(path: Path) -> Path:
    """The file or folder of weights that ``path`` stands for; ``path`` itself where it is one, or nothing
    known.

    Known are a hub's cache (``models--owner--name``: the snapshot that its main branch names, or the only
    one), a diffusers pipeline (its ``transformer``), a trainer's folder with a distributed checkpoint in
    ``model``, a folder of one checkpoint, and of several the one that has ``ema`` in its name, as official
    ones are published (``<uuid>_ema_bf16.pt``).

    Raises:
        ValueError: it is unclear which of several is meant.
    """
    if not path.is_dir() or is_weights(path):
        return path
    if (path / "snapshots").is_dir():
        return weights_in(snapshot(path))
    if (path / "transformer").is_dir():
        return path / "transformer"
    if (path / "model" / DISTRIBUTED).is_file():
        return path / "model"
    files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
    averages = [p for p in files if "ema" in p.stem.split("_")]
    for some in (files, averages):
        if len(some) == 1:
            return some[0]
    if len(averages) > 1 or (files and not averages):
        listed = ", ".join(p.name for p in files[:5]) + (
            f" and {len(files) - 5} more" if len(files) > 5 else ""
        )
        raise ValueError(f"{path} holds several checkpoints ({listed}) and no index: name one of them")
    return path


def is_weights(folder: Path) -> bool:
    """Whether a folder is one network: sharded safetensors with their index, one such file alone, or a
    distributed checkpoint."""
    if (folder / DISTRIBUTED).is_file():
        return True
    if len(list(folder.glob("*.safetensors.index.json"))) == 1:
        return True
    return len([p for p in folder.iterdir() if p.suffix in _SUFFIXES]) == 1 and any(
        folder.glob("*.safetensors")
    )


def snapshot(path: Path) -> Path:
    """The snapshot of a hub's cache that its main branch names, or the only one.

    Raises:
        ValueError: there are several, or none.
    """
    found = sorted(p for p in (path / "snapshots").iterdir() if p.is_dir())
    main = path / "refs" / "main"
    if main.is_file():
        name = main.read_text(encoding="utf-8", errors="replace").strip()
        if inside(name) and (path / "snapshots" / name) in found:
            return path / "snapshots" / name
    if len(found) != 1:
        raise ValueError(f"{path} is a hub's cache with {len(found)} snapshots and no main: name one of them")
    return found[0]
