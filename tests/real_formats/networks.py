"""Tiny random networks of the published families, in every form in which networks are found."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

from cosmos_distill import families, models
from cosmos_distill.models.common import weights

State = dict[str, torch.Tensor]
TRANSFER1, PREDICT25 = "transfer1-smoke", "predict2.5-smoke"
"""Presets that have the sizes of the networks here; published ones differ from them in sizes only."""
UUID = "81edfebe-bd6a-4039-8c1d-737df1a790bf"
"""As a published checkpoint is called."""
DISTILLED = "575edf0f-d973-4c74-b52c-69929a08d0a5"


def randomize(network: nn.Module, seed: int = 1) -> None:
    """Draw every weight, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            norm = name.endswith(("norm.weight", "q_norm", "k_norm"))
            p.copy_(1 + 0.2 * noise if norm else noise / p.shape[-1] ** 0.5)


@cache
def ours(preset: str, seed: int = 1) -> Mapping[str, torch.Tensor]:
    """A random network's tensors in our names, bf16."""
    network = models.build(families.preset(preset), dtype=torch.bfloat16, seed=None)
    randomize(network, seed)
    return {name: p.detach() for name, p in network.named_parameters()}


def official(preset: str, seed: int = 1) -> State:
    """The same in the names of its one official file, with what such files carry besides."""
    state = weights.to_official(ours(preset, seed), families.preset(preset).family)
    carried = {
        "net.pos_embedder.seq": torch.arange(8.0),
        "net.accum_video_sample_counter": torch.tensor(12.0),
        "net.blocks.0.self_attn.attn_op._extra_state": torch.zeros(0, dtype=torch.uint8),
    }
    if preset == TRANSFER1:
        carried = {
            "base_model.net.pos_embedder.seq": torch.arange(8.0),
            "base_model.logvar.0.freqs": torch.ones(4),
            "net.pos_embedder.seq": torch.arange(8.0),
            "net.final_layer.linear.weight": torch.ones(64, 48),
            "logvar.1.weight": torch.ones(1, 4),
        }
    return state | carried


def renamed(state: State, *prefixes: tuple[str, str]) -> State:
    """Tensors whose names have one of the first prefixes, with the second one in its place."""
    found = {}
    for name, value in state.items():
        for old, new in prefixes:
            if name.startswith(old):
                found[new + name.removeprefix(old)] = value
                break
    return found


def transfer1(folder: Path) -> None:
    """``base_model.pt`` beside ``edge_control.pt`` and ``edge_control_distilled.pt``, as on the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = official(TRANSFER1)
    torch.save(renamed(merged, ("base_model.", "")), folder / "base_model.pt")
    control = {name: value for name, value in merged.items() if not name.startswith("base_model.")}
    torch.save(control, folder / "edge_control.pt")
    student = renamed(
        official(TRANSFER1, seed=2), ("base_model.net.", "net.base_model.net."), ("net.", "net.net_ctrl.")
    )
    torch.save(student, folder / "edge_control_distilled.pt")


def predict25(folder: Path) -> None:
    """``<uuid>_ema_bf16.pt`` beside ``<uuid>.pt``, which holds a network and its average."""
    folder.mkdir(parents=True, exist_ok=True)
    state = official(PREDICT25)
    torch.save(state, folder / f"{UUID}_ema_bf16.pt")
    torch.save(both(), folder / f"{UUID}.pt")


def both() -> State:
    """A network under ``net.`` and its average under ``net_ema.``."""
    average = renamed(official(PREDICT25), ("net.", "net_ema."))
    return official(PREDICT25, seed=2) | average


def to_diffusers(preset: str = PREDICT25) -> State:
    """In the names of diffusers' CosmosTransformer3DModel."""
    return weights.to_diffusers(ours(preset))


def pipeline(folder: Path, shards: int = 2) -> None:
    """A diffusers pipeline, whose transformer is in shards with an index."""
    transformer = folder / "transformer"
    transformer.mkdir(parents=True, exist_ok=True)
    said = {"_class_name": "Cosmos2_5_PredictBasePipeline"}
    (folder / "model_index.json").write_text(json.dumps(said))
    (transformer / "config.json").write_text(json.dumps({"_class_name": "CosmosTransformer3DModel"}))
    state, places = to_diffusers(), {}
    for number in range(shards):
        name = f"diffusion_pytorch_model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(state.items())[number::shards])
        save_file(part, transformer / name, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    index = transformer / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))


def hub_cache(folder: Path) -> None:
    """``models--owner--name`` with links to blobs, two revisions, and a branch that says which one counts."""
    whole = folder.parent / f".{folder.name}"
    pipeline(whole)
    blobs, revision = folder / "blobs", "0" * 39 + "a"
    blobs.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted(p for p in whole.rglob("*") if p.is_file())):
        blob = blobs / f"{number:064x}"
        file.rename(blob)
        link = folder / "snapshots" / revision / file.relative_to(whole)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    for empty in sorted(whole.rglob("*"), reverse=True):
        empty.rmdir()
    whole.rmdir()
    (folder / "snapshots" / ("1" * 40)).mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)


def distributed(folder: Path, state: object = None) -> None:
    """A checkpoint of torch.distributed.checkpoint, as a trainer leaves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(official(PREDICT25) if state is None else state, checkpoint_id=folder)


def trainer(folder: Path) -> None:
    """A trainer's folder: the network, its average and an optimiser in one checkpoint, below ``model``."""
    distributed(folder / "model", {"model": both(), "optim": {"exp_avg": torch.ones(3)}})


def wrapped(file: Path) -> None:
    """Names as torch.compile, activation checkpointing and FSDP leave them, one within the other."""
    state = {}
    for name, value in official(PREDICT25).items():
        inner = name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module.").replace(
            "blocks.1.", "blocks.1._fsdp_wrapped_module."
        )
        state[f"module._orig_mod.{inner}"] = value
    save_file(state, file)


def eight_bits(file: Path, ending: str = ".weight_scale", *, rows: bool = False) -> None:
    """fp8 matrices of the blocks with a scale for each, or for each of their rows."""
    state = official(PREDICT25)
    for name, value in list(state.items()):
        if ".blocks." not in f".{name}" or value.ndim != 2:
            continue
        peak = value.float().abs().amax(1 if rows else None)
        scale = (peak / 448).clamp_min(1e-12)
        state[name] = (value.float() / (scale[:, None] if rows else scale)).to(torch.float8_e4m3fn)
        state[name.removesuffix(".weight") + ending] = scale
    save_file({name: value.contiguous() for name, value in state.items()}, file)


def lora(folder: Path, **config: object) -> None:
    """peft's folder of an adapter of a few linear layers of Predict2.5."""
    folder.mkdir(parents=True, exist_ok=True)
    state, generator = official(PREDICT25), torch.Generator().manual_seed(3)
    pairs = {}
    for module in ("blocks.0.self_attn.q_proj", "blocks.1.mlp.layer1"):
        out, inner = state[f"net.{module}.weight"].shape
        name = f"base_model.model.{module}"
        pairs[f"{name}.lora_A.weight"] = torch.randn(4, inner, generator=generator) / inner
        pairs[f"{name}.lora_B.weight"] = torch.randn(out, 4, generator=generator) / 4
    save_file(pairs, folder / "adapter_model.safetensors", {"format": "pt"})
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 4} | config
    (folder / "adapter_config.json").write_text(json.dumps(said))


def saved(
    file: Path, state: Mapping[str, torch.Tensor], change: Callable[[State], State] | None = None
) -> None:
    """One file of ``state``, in the format that its suffix says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = dict(state) if change is None else change(dict(state))
    if file.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, file)
    else:
        torch.save(state, file)
