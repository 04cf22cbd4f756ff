"""Every form of a file that somebody brings: where it lies in the zoo, how it is made, and whether it is read
or refused, and with which words."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from cosmos_distill import families, models
from cosmos_distill.arrays.places import weights_in
from cosmos_distill.config import Data
from cosmos_distill.data.captions import Captions, Unusable
from cosmos_distill.data.errors import DataError
from cosmos_distill.models.common import eight_bits, weights
from cosmos_distill.models.common.forms import AverageTaken
from cosmos_distill.storage import publish_tensors
from cosmos_distill.text import build as build_encoder
from cosmos_distill.tokenizers import build as build_tokenizer
from cosmos_distill.tokenizers import check as check_tokenizer
from tests.real_formats import networks, text_encoders
from tests.real_formats.networks import PREDICT25, TRANSFER1, official, saved


@dataclass(frozen=True)
class Form:
    """One row of the table."""

    what: str
    path: str
    """In the zoo."""
    made: Callable[[Path], object] | None = None
    """Called with the path, unless it is part of the models that the zoo holds anyway."""
    refused: str | None = None
    """Words of the message; None: it is read."""
    preset: str = PREDICT25
    """Of a network."""
    controls: tuple[str, ...] = ("edge",)
    """Of a network; with several it has a branch for each."""
    base: str | None = None
    """Of an adapter: what it is merged into."""
    kind: Literal["cosmos-cv8x8x8", "wan2.1"] = "wan2.1"
    """Of a tokenizer: which one is meant."""

    def make(self, zoo: Path) -> None:
        """Lay it down."""
        if self.made is not None:
            (zoo / self.path).parent.mkdir(parents=True, exist_ok=True)
            self.made(zoo / self.path)


def _own(file: Path) -> None:
    network = models.build(families.preset(PREDICT25), seed=None)
    networks.randomize(network)
    weights.save(network, file, dtype=torch.bfloat16)


def _merged_transfer1(file: Path) -> None:
    saved(file, official(TRANSFER1))


def _transformer(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "CosmosTransformer3DModel"}))
    saved(folder / "diffusion_pytorch_model.safetensors", networks.to_diffusers())


def _other_size(file: Path) -> None:
    config = replace(families.preset(PREDICT25), width=32, heads=2, head_dim=16)
    network = models.build(config, dtype=torch.bfloat16, seed=0)
    saved(file, weights.to_official({n: p.detach() for n, p in network.named_parameters()}, config.family))


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


def _evil(file: Path) -> None:
    torch.save({"net.x_embedder.proj.1.weight": _Runs()}, file)


def _evil_metadata(folder: Path) -> None:
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(_Runs()))


def _cut(file: Path) -> None:
    whole = file.with_name(f".whole{file.suffix}")
    saved(whole, official(PREDICT25))
    file.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()


def _pointer(file: Path) -> None:
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4116000000\n")


def _page(file: Path) -> None:
    file.write_text(
        "<!DOCTYPE html><html><head><title>Access to this model is restricted</title></head></html>"
    )


def _lacking(folder: Path) -> None:
    networks.pipeline(folder)
    next(iter(sorted((folder / "transformer").glob("*-00002-*.safetensors")))).unlink()


def _unfinished(folder: Path) -> None:
    networks.hub_cache(folder)
    next(p for p in sorted((folder / "blobs").iterdir(), reverse=True) if p.stat().st_size > 10_000).unlink()


def _integers(file: Path) -> None:
    saved(file, {n: v.to(torch.int8) if v.ndim == 2 else v for n, v in official(PREDICT25).items()})


def _gguf(file: Path) -> None:
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(64))


def _two_controls(folder: Path) -> None:
    networks.transfer1(folder)
    branch = {k: v for k, v in official(TRANSFER1, seed=3).items() if not k.startswith("base_model.")}
    saved(folder / "vis_control.pt", branch)


def _own_in_eight_bits(file: Path) -> None:
    publish_tensors(eight_bits.stored(networks.ours(PREDICT25)), file, {})


def _several(folder: Path) -> None:
    folder.mkdir()
    for name in ("iter_1000", "iter_2000"):
        saved(folder / f"{name}.pt", {"net.x_embedder.proj.1.weight": torch.zeros(2, 2)})


NETWORKS = [
    Form("our own `.safetensors`, as exported", "forms/own.safetensors", _own),
    Form("our own `.safetensors`, exported in fp8", "forms/own_fp8.safetensors", _own_in_eight_bits),
    Form(
        "official names, `.safetensors`",
        "forms/official.safetensors",
        lambda f: saved(f, official(PREDICT25)),
    ),
    Form("official names, `.pt`", f"predict25/{networks.UUID}_ema_bf16.pt"),
    Form(
        "official names, `.pth`, fp16",
        "forms/half.pth",
        lambda f: saved(
            f, {n: v.half() if v.is_floating_point() else v for n, v in official(PREDICT25).items()}
        ),
    ),
    Form("a published folder: `<uuid>_ema_bf16.pt` beside `<uuid>.pt`", "predict25"),
    Form("a network (`net.`) beside its average (`net_ema.`)", f"predict25/{networks.UUID}.pt"),
    Form("`base_model.pt` beside `<control>_control.pt` (Transfer1)", "transfer1", preset=TRANSFER1),
    Form(
        "`base_model.pt` beside several `<control>_control.pt` (`--network.branches`)",
        "forms/transfer1_branches",
        _two_controls,
        preset=TRANSFER1,
        controls=("edge", "vis"),
    ),
    Form(
        "base and control in one file (Transfer1)",
        "forms/edge_control_merged.pt",
        _merged_transfer1,
        preset=TRANSFER1,
    ),
    Form(
        "the released one-step student (Transfer1)", "transfer1/edge_control_distilled.pt", preset=TRANSFER1
    ),
    Form("the released four-step student (Predict2.5)", "predict25/distilled"),
    Form(
        "a diffusers pipeline, its transformer in shards with an index", "forms/diffusers", networks.pipeline
    ),
    Form("a diffusers transformer", "forms/transformer", _transformer),
    Form("a hub's cache, links to blobs", "forms/models--nvidia--Cosmos-Predict2.5-2B", networks.hub_cache),
    Form(
        "a checkpoint of torch.distributed (`.metadata`, `.distcp`)",
        "forms/iter_000001000",
        networks.distributed,
    ),
    Form("a trainer's folder, with optimiser and average", "forms/trainer", networks.trainer),
    Form(
        "names within `module.`, `_orig_mod.`, `_checkpoint_wrapped_module.`, `_fsdp_wrapped_module.`",
        "forms/wrapped.safetensors",
        networks.wrapped,
    ),
    Form("fp8, `weight_scale` for each tensor", "forms/fp8.safetensors", networks.eight_bits),
    Form(
        "fp8, `scale_weight` for each row",
        "forms/fp8_rows.safetensors",
        partial(networks.eight_bits, ending=".scale_weight", rows=True),
    ),
    Form("a low-rank adapter of peft (`--teacher-lora`)", "forms/lora", networks.lora, base="predict25"),
    Form(
        "the base alone where a control branch is needed",
        "transfer1/base_model.pt",
        preset=TRANSFER1,
        refused="pass the pair",
    ),
    Form(
        "a network of another size", "refused/another_size.safetensors", _other_size, "2 blocks of width 32"
    ),
    Form("a network of another family", "transfer1/edge_control.pt", refused="does not fit this network"),
    Form(
        "a low-rank adapter where a network is meant",
        "forms/lora/adapter_model.safetensors",
        refused="adapter",
    ),
    Form(
        "an adapter with DoRA's magnitudes",
        "refused/dora",
        partial(networks.lora, use_dora=True),
        "use_dora",
        base="predict25",
    ),
    Form("a pickle that asks for code", "refused/evil.pt", _evil, "calls posix.mkdir"),
    Form(
        "a distributed checkpoint whose metadata asks for code",
        "refused/evil_dcp",
        _evil_metadata,
        "calls posix.mkdir",
    ),
    Form("a download that was cut short, `.safetensors`", "refused/cut.safetensors", _cut, "damaged"),
    Form("a download that was cut short, `.pt`", "refused/cut.pt", _cut, "cut short"),
    Form("a pointer of Git LFS in the place of the file", "refused/pointer.safetensors", _pointer, "Git LFS"),
    Form("a web page that was saved under the file's name", "refused/page.pt", _page, "web page"),
    Form("shards of which one is missing", "refused/lacking", _lacking, "is missing"),
    Form(
        "a hub's cache whose download has not ended",
        "refused/models--nvidia--unfinished",
        _unfinished,
        "nowhere",
    ),
    Form("int8 weights", "refused/int8.safetensors", _integers, "not floating point"),
    Form("GGUF", "refused/model.gguf", _gguf, "GGUF"),
    Form(
        "a folder with several checkpoints and no average", "refused/several", _several, "several checkpoints"
    ),
    Form("another model: a VAE", "predict25/Wan2.1_VAE.pth", refused="is not a"),
    Form("another model: a text encoder", "predict25/reason1", refused="is not a"),
]


def _copy(source: str, change: Callable[[Path], object], target: Path) -> None:
    """Something of the zoo, changed."""
    zoo = target.parents[1]
    if (zoo / source).is_dir():
        shutil.copytree(zoo / source, target)
    else:
        shutil.copy(zoo / source, target)
    change(target)


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _half(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])

    return cut


def _of_another_class(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"_class_name": "AutoencoderKL"}))


def _one_frame_of_statistics(folder: Path) -> None:
    torch.save((torch.zeros(16), torch.ones(16)), folder / "mean_std.pt")


CV8X8X8, WAN = "cosmos-cv8x8x8", "wan2.1"
TOKENIZERS = [
    Form(
        "CV8x8x8: `encoder.jit`, `decoder.jit` and `mean_std.pt` in a folder",
        "transfer1/tokenizer",
        kind=CV8X8X8,
    ),
    Form("Wan 2.1's VAE: the official `Wan2.1_VAE.pth`", "predict25/Wan2.1_VAE.pth", kind=WAN),
    Form("Wan 2.1's VAE: the folder that holds that file", "predict25", kind=WAN),
    Form("Wan 2.1's VAE: a diffusers folder", "predict25/vae", kind=WAN),
    Form("CV8x8x8 where Wan's VAE is meant", "transfer1/tokenizer", kind=WAN, refused="is the Cosmos"),
    Form(
        "Wan's VAE where CV8x8x8 is meant",
        "predict25/vae",
        kind=CV8X8X8,
        refused="is the Wan 2.1",
    ),
    Form(
        "Wan's official file where CV8x8x8 is meant",
        "predict25/Wan2.1_VAE.pth",
        kind=CV8X8X8,
        refused="is the Wan 2.1",
    ),
    Form(
        "CV8x8x8 without its statistics",
        "refused/cv_without",
        partial(_copy, "transfer1/tokenizer", _without("mean_std.pt")),
        "lacks mean_std.pt",
        kind=CV8X8X8,
    ),
    Form(
        "CV8x8x8 with statistics of another tokenizer",
        "refused/cv_statistics",
        partial(_copy, "transfer1/tokenizer", _one_frame_of_statistics),
        "latent frames",
        kind=CV8X8X8,
    ),
    Form(
        "CV8x8x8 whose decoder was cut short",
        "refused/cv_cut",
        partial(_copy, "transfer1/tokenizer", _half("decoder.jit")),
        "cut short",
        kind=CV8X8X8,
    ),
    Form(
        "a diffusers VAE of another class",
        "refused/other_vae",
        partial(_copy, "predict25/vae", _of_another_class),
        "AutoencoderKL",
        kind=WAN,
    ),
    Form(
        "Wan's official file, cut short",
        "refused/Wan2.1_VAE.pth",
        partial(_copy, "predict25/Wan2.1_VAE.pth", lambda file: file.write_bytes(file.read_bytes()[:20_000])),
        "cut short",
        kind=WAN,
    ),
    Form(
        "a network where a tokenizer is meant",
        f"predict25/{networks.UUID}_ema_bf16.pt",
        kind=WAN,
        refused="is not Wan 2.1's VAE",
    ),
]
TEXT = [
    Form("T5: transformers' folder", "transfer1/t5"),
    Form(
        "T5: weights as `pytorch_model.bin`, as T5-11B is published",
        "forms/t5-11b",
        partial(_copy, "transfer1/t5", text_encoders.as_pickle),
    ),
    Form("Cosmos-Reason1 (Qwen2.5-VL): transformers' folder", "predict25/reason1"),
    Form(
        "Cosmos-Reason1: in shards with an index",
        "forms/reason1",
        partial(_copy, "predict25/reason1", text_encoders.in_shards),
    ),
    Form(
        "an encoder without its tokenizer",
        "refused/no_words",
        partial(_copy, "transfer1/t5", _without("tokenizer.json")),
        "has no tokenizer",
    ),
    Form(
        "an encoder of which a shard is missing",
        "refused/reason1_lacking",
        partial(_copy, "forms/reason1", _without("model-00002-of-00003.safetensors")),
        "lacks model-00002",
    ),
    Form("another model of transformers", "refused/bert", lambda f: _bert(f), "is no text encoder"),
]


def _bert(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def _captions(write: Callable[[Path], object], folder: Path) -> None:
    """The clips of the zoo by a link, with captions that ``write`` lays down."""
    folder.mkdir()
    (folder / "videos").symlink_to(Path("..", "..", "clips", "videos"))
    write(folder)


def _contradicting(folder: Path) -> None:
    (folder / "captions").mkdir()
    (folder / "captions" / "snow.txt").write_text("a snowy street")
    (folder / "captions.json").write_text(json.dumps({"snow": "a street in the rain"}))


CAPTIONS = [
    Form("`captions/<id>.txt`", "clips"),
    Form("`metas/<id>.txt`", "layouts/metas"),
    Form("`captions.json`: a mapping of names to captions", "layouts/json"),
    Form("`captions.jsonl`: a record in each line", "layouts/jsonl"),
    Form("`captions.csv` under a header", "layouts/csv"),
    Form("clips without any", "layouts/nothing", refused="has no caption"),
    Form(
        "a table of other clips",
        "refused/other_names",
        partial(_captions, lambda f: (f / "captions.json").write_text('{"clip7": "a car"}')),
        "while captions are given for clip7",
    ),
    Form("an empty caption", "refused/empty", partial(_captions, lambda f: _one_text(f, " ")), "is empty"),
    Form("two captions of one clip", "refused/two", partial(_captions, _contradicting), "has two captions"),
    Form(
        "a table that is no JSON",
        "refused/broken",
        partial(_captions, lambda f: (f / "captions.json").write_text('{"snow": ')),
        "captions.json",
    ),
]


def _one_text(folder: Path, text: str) -> None:
    (folder / "captions").mkdir()
    (folder / "captions" / "snow.txt").write_text(text)


def open_captions(form: Form, zoo: Path) -> None:
    """The caption of a clip is the one that was written."""
    root = zoo / form.path
    try:
        found = Captions(root, sorted(path.stem for path in (root / "videos").iterdir())).of("snow")
    except (Unusable, DataError) as error:
        raise ValueError(f"{root}: {error}") from error
    assert found.text == "the camera follows two people on a snowy street"


def open_network(form: Form, zoo: Path) -> None:
    """Hold its header against the preset, and load it."""
    config, path = families.preset(form.preset), zoo / form.path
    names = config.family.names
    assert names is not None
    if len(form.controls) > 1:
        config = replace(config, branches=len(form.controls))  # type: ignore[call-arg]
    parts = [names.files(path, control) or () for control in form.controls] if path.is_dir() else []
    source: weights.Source = tuple(dict.fromkeys(file for part in parts for file in part)) or path
    if form.base is not None:
        source = (weights_in(zoo / form.base), path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AverageTaken)
        weights.check(models.build(config, device="meta", seed=None), source)
        weights.load_into(models.build(config, seed=None), source)


def open_tokenizer(form: Form, zoo: Path) -> None:
    """Hold its header against the kind that is meant, load it, and take a clip there and back."""
    choice = Data(tokenizer=form.kind, tokenizer_path=zoo / form.path)
    check_tokenizer(choice)
    tokenizer = build_tokenizer(choice)
    video = torch.zeros(1, 3, 9, 16, 16, dtype=torch.uint8)
    assert tokenizer.decode(tokenizer.encode(video)).shape == video.shape


def open_text(form: Form, zoo: Path) -> None:
    """Load it and encode a prompt."""
    encoder = build_encoder(zoo / form.path, tokens=40)
    assert encoder(["a red car"]).shape == (1, 40, encoder.channels)


SECTIONS: dict[str, tuple[list[Form], Callable[[Form, Path], None]]] = {
    "Networks (`--teacher`)": (NETWORKS, open_network),
    "Tokenizers (`--tokenizer`)": (TOKENIZERS, open_tokenizer),
    "Text encoders (`--text-encoder`)": (TEXT, open_text),
    "Captions (`--data`)": (CAPTIONS, open_captions),
}
MADE = [form for forms, _ in SECTIONS.values() for form in forms if form.made is not None]
