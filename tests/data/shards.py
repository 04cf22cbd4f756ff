"""Small WebDataset archives, datasets of Megatron-Energon, and stores, made of a folder of clips."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import fsspec
import yaml


def write_shard(path: Path, samples: Mapping[str, Mapping[str, Path | bytes]]) -> Path:
    """An archive of samples: key -> what stands behind the first dot -> a file, or its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for part, content in parts.items():
                data = content if isinstance(content, bytes) else content.read_bytes()
                info = tarfile.TarInfo(f"{key}.{part}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def of_folder(root: Path, names: Sequence[str], control: str | None = None) -> dict[str, dict[str, Path]]:
    """The samples of clips in the published layout."""
    found = {}
    for name in names:
        found[name] = {
            "mp4": root / "videos" / f"{name}.mp4",
            "t5_xxl.safetensors": root / "t5_xxl" / f"{name}.safetensors",
        }
        if control is not None:
            found[name][f"{control}.mp4"] = root / control / f"{name}.mp4"
    return found


def prepare(
    root: Path,
    split: Mapping[str, Sequence[str]],
    exclude: Sequence[str] = (),
    *,
    old: bool = False,
    key: Callable[[str], str] = lambda name: name.split(".")[0],
) -> None:
    """What Megatron-Energon's ``prepare`` writes beside the shards of ``root``, of its newer or older
    versions."""
    meta = root / ".nv-meta"
    meta.mkdir()
    counts = {}
    for path in sorted(root.rglob("*.tar")):
        starts, last = [], None
        with tarfile.open(path) as tar:
            for member in tar:
                if key(member.name) != last:
                    starts.append(member.offset)
                    last = key(member.name)
            starts.append(tar.offset)
        path.with_suffix(".tar.idx").write_bytes(b"".join(n.to_bytes(8, "little") for n in starts))
        counts[path.relative_to(root).as_posix()] = len(starts) - 1
    if old:
        (meta / ".info.yaml").write_text(yaml.dump({"shard_counts": counts}))
    else:
        (meta / ".info.json").write_text(json.dumps({"energon_version": "7.0.0", "shard_counts": counts}))
    splits = {"split_parts": {name: list(shards) for name, shards in split.items()}, "exclude": list(exclude)}
    (meta / "split.yaml").write_text(yaml.dump(splits))
    (meta / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")


def upload(root: Path, url: str) -> str:
    """A copy of a folder in one of fsspec's stores."""
    system, path = fsspec.core.url_to_fs(url)
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        system.makedirs(f"{path}/{file.relative_to(root).parent.as_posix()}", exist_ok=True)
        with system.open(f"{path}/{file.relative_to(root).as_posix()}", "wb") as stream:
            stream.write(file.read_bytes())
    return url
