"""Every form in which a network's weights are found is read as that network, and nothing in it is run."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint import metadata as about
from torch.distributed.checkpoint.filesystem import _StorageInfo

from cosmos_distill import families, models
from cosmos_distill.arrays import distcp
from cosmos_distill.arrays.lazy import Lazy
from cosmos_distill.arrays.places import weights_in
from cosmos_distill.models.common import forms, weights


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture
def official(make_predict):
    """(network, the tensors of its official file)."""
    network = make_predict()
    state = dict(network.named_parameters())
    return network, weights.to_official({n: p.detach() for n, p in state.items()}, network.family)


@pytest.fixture
def wanted(official):
    return {name: p.detach() for name, p in official[0].named_parameters()}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."),
        lambda name: "_fsdp_wrapped_module." + name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module."),
    ],
)
def test_names_of_wrappers_are_left_out(wrapped, official, wanted, tmp_path):
    save_file({wrapped(name): value for name, value in official[1].items()}, tmp_path / "w.safetensors")
    assert same(weights.load(tmp_path / "w.safetensors")[0], wanted)


def test_a_tensor_within_and_without_its_wrapper_is_refused(official, tmp_path):
    name = next(iter(official[1]))
    save_file(official[1] | {f"module.{name}": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="twice"):
        weights.load(tmp_path / "w.safetensors")


def test_of_a_network_and_its_average_the_average_is_taken_and_said(official, wanted, tmp_path):
    path = tmp_path / "both.pt"
    averages = {name.replace("net.", "net_ema."): value + 1 for name, value in official[1].items()}
    torch.save(official[1] | averages, path)
    with pytest.warns(forms.AverageTaken, match=r"both\.pt holds a network and its average"):
        found, _ = weights.load(path)
    assert same(found, {name: value + 1 for name, value in wanted.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(weights.load(path, average=False)[0], wanted)


def test_a_hubs_cache_a_pipeline_and_a_published_folder(official, wanted, tmp_path):
    """Links to blobs, as a hub's client lays them out; the transformer of a pipeline in it."""
    cache = tmp_path / "models--someone--model"
    blob = cache / "blobs" / "0123abcd"
    blob.parent.mkdir(parents=True)
    save_file(official[1], blob)
    for revision in ("aaaa", "bbbb"):
        folder = cache / "snapshots" / revision / "transformer"
        folder.mkdir(parents=True)
        (folder / "diffusion_pytorch_model.safetensors").symlink_to(os.path.relpath(blob, folder))
    with pytest.raises(ValueError, match="2 snapshots"):
        weights_in(cache)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("bbbb\n")
    assert weights_in(cache) == cache / "snapshots" / "bbbb" / "transformer"
    assert same(weights.load(cache)[0], wanted)
    (cache / "refs" / "main").write_text("../../..")
    with pytest.raises(ValueError, match="2 snapshots"):
        weights_in(cache)

    published = tmp_path / "post-trained"
    published.mkdir()
    torch.save(official[1], published / "81edfebe-bd6a-4039-8c1d-737df1a790bf_ema_bf16.pt")
    assert same(weights.load(published)[0], wanted)
    torch.save({"x": torch.zeros(1)}, published / "81edfebe-bd6a-4039-8c1d-737df1a790bf.pt")
    assert same(weights.load(published)[0], wanted)  # the average of the two
    torch.save({"x": torch.zeros(1)}, published / "other_ema.pt")
    with pytest.raises(ValueError, match="several checkpoints"):
        weights.load(published)


def test_an_index_in_the_place_of_its_folder_is_refused_with_advice(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(ValueError, match="give its folder"):
        weights.load(index)


def test_a_distributed_checkpoint(official, wanted, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": official[1], "step": 7}, checkpoint_id=tmp_path / "iter_7")
    prefixed = distcp.read(tmp_path / "iter_7")
    assert all(isinstance(value, Lazy) for value in prefixed.values())
    assert same({name.removeprefix("model."): v.make() for name, v in prefixed.items()}, official[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(official[1], checkpoint_id=tmp_path / "plain")
    assert same(weights.load(tmp_path / "plain")[0], wanted)
    # The network of a trainer's checkpoint: below a key, beside the optimiser, or in a folder of that name.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            {"model": official[1], "optim": {"x": torch.ones(3)}},
            checkpoint_id=tmp_path / "trainer" / "model",
        )
    assert same(weights.load(tmp_path / "iter_7")[0], wanted)
    assert same(weights.load(tmp_path / "trainer")[0], wanted)
    network = official[0]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    weights.load_into(network, tmp_path / "plain")
    assert same({name: p.detach() for name, p in network.named_parameters()}, wanted)


def write_pieces(folder, pieces, size=(4, 6), dtype=torch.float32, **info):
    """A checkpoint of one tensor ``x`` in pieces {offsets: tensor}, one file for each."""
    folder.mkdir(exist_ok=True)
    places, chunks = {}, []
    for number, (offsets, part) in enumerate(pieces.items()):
        path = folder / f"__{number}_0.distcp"
        with path.open("wb") as file:
            file.write(bytes(number))  # a piece may begin anywhere
            torch.save(part, file)
        index = about.MetadataIndex("x", torch.Size(offsets), number)
        length = path.stat().st_size - number
        places[index] = replace(_StorageInfo(path.name, number, length), **info)
        chunks.append(about.ChunkStorageMetadata(torch.Size(offsets), part.shape))
    properties = about.TensorProperties(dtype=dtype)
    tensor = about.TensorStorageMetadata(properties, torch.Size(size), chunks)
    said = about.Metadata({"x": tensor, "step": about.BytesStorageMetadata()}, None, places)
    (folder / ".metadata").write_bytes(pickle.dumps(said))


def test_pieces_of_several_ranks_are_put_together(tmp_path):
    x = torch.arange(24.0).reshape(4, 6)
    write_pieces(tmp_path, {(0, 0): x[:2, :4].clone(), (0, 4): x[:2, 4:].clone(), (2, 0): x[2:].clone()})
    found = distcp.read(tmp_path)["x"]
    assert found.shape == (4, 6) and found.dtype == torch.float32 and torch.equal(found.make(), x)


class Runs:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_what_a_distributed_checkpoint_must_not_say(tmp_path):
    x = torch.zeros(4, 6)
    write_pieces(tmp_path / "outside", {(0, 0): x}, relative_path="../secret")
    with pytest.raises(ValueError, match="outside of its folder"):
        distcp.read(tmp_path / "outside")
    write_pieces(tmp_path / "long", {(0, 0): x}, length=10**9)
    with pytest.raises(ValueError, match="shorter than it says"):
        distcp.read(tmp_path / "long")
    write_pieces(tmp_path / "part", {(0, 0): x[:2].clone()})
    with pytest.raises(ValueError, match="is not whole"):
        distcp.read(tmp_path / "part")
    write_pieces(tmp_path / "overlap", {(0, 0): x[:2].clone(), (1, 0): x[:2].clone()})
    with pytest.raises(ValueError, match="overlap"):
        distcp.read(tmp_path / "overlap")["x"].make()
    write_pieces(tmp_path / "other", {(0, 0): x.double()})
    with pytest.raises(ValueError, match="another than the metadata says"):
        distcp.read(tmp_path / "other")["x"].make()
    write_pieces(tmp_path / "huge", {(0, 0): x}, size=(2**40, 2**40))
    with pytest.raises(ValueError, match="is not whole"):
        distcp.read(tmp_path / "huge")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / ".metadata").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    with pytest.raises(ValueError, match="which no array needs"):
        distcp.read(tmp_path / "evil")
    assert not (tmp_path / "ran").exists()
    content = (tmp_path / "part" / ".metadata").read_bytes()
    for cut in range(0, len(content) - 1, 37):
        (tmp_path / "part" / ".metadata").write_bytes(content[:cut])
        with pytest.raises(ValueError, match="metadata"):
            distcp.read(tmp_path / "part")


@pytest.mark.parametrize("ending", [".weight_scale", ".scale_weight"])
@pytest.mark.parametrize("per", ["tensor", "row", "column of rows"])
def test_eight_bit_weights_are_scaled(ending, per, official, wanted, tmp_path):
    """Rounded to 8 bits, every matrix comes back within half a step of them."""
    tensors = dict(official[1])
    matrices = [n for n, v in tensors.items() if n.endswith(".weight") and v.ndim == 2 and "blocks" in n]
    for name in matrices:
        value = tensors[name].float()
        peak = value.abs().amax(1) if per != "tensor" else value.abs().amax()
        scale = (peak / 448).clamp_min(1e-12)
        whole = scale[:, None] if per != "tensor" else scale
        tensors[name] = (value / whole).to(torch.float8_e4m3fn)
        tensors[name.removesuffix(".weight") + ending] = whole if per == "column of rows" else scale
        tensors[name.removesuffix(".weight") + ".input_scale"] = torch.tensor(1.0)
    save_file({n: v.contiguous() for n, v in tensors.items()}, tmp_path / "fp8.safetensors")
    network = official[0]
    weights.check(network, tmp_path / "fp8.safetensors")
    found, carried = weights.load(tmp_path / "fp8.safetensors")
    assert not carried and found.keys() == wanted.keys() and len(matrices) > 10
    for name, value in wanted.items():
        assert (found[name].float() - value.float()).norm() <= 0.04 * value.float().norm()
    changed = [name for name in wanted if found[name].dtype == torch.bfloat16]
    assert len(changed) == len(matrices)
    weights.load_into(network, tmp_path / "fp8.safetensors")


def test_headers_are_compared_without_scaling_anything(official, tmp_path, monkeypatch):
    name = next(n for n, v in official[1].items() if n.endswith(".weight") and v.ndim == 2)
    scaled = {name: official[1][name].to(torch.float8_e4m3fn), name + "_scale": torch.tensor(2.0)}
    save_file(official[1] | scaled, tmp_path / "fp8.safetensors")
    monkeypatch.setattr(forms, "_times", lambda *args: pytest.fail("a value was read"))
    weights.check(official[0], tmp_path / "fp8.safetensors")


def test_eight_bits_without_a_scale_are_taken_as_they_stand_and_a_scale_must_fit(official, wanted, tmp_path):
    name = next(n for n, v in official[1].items() if n.endswith(".weight") and v.ndim == 2)
    eight = official[1] | {name: official[1][name].to(torch.float8_e4m3fn)}
    save_file(eight, tmp_path / "bare.safetensors")
    found, _ = weights.load(tmp_path / "bare.safetensors")
    (changed,) = [n for n, v in found.items() if v.dtype != torch.float32]
    assert torch.equal(found[changed].float(), wanted[changed].to(torch.float8_e4m3fn).float())
    save_file(eight | {name + "_scale": torch.ones(7)}, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"is \[7\], neither one number"):
        weights.load(tmp_path / "wrong.safetensors")
    other = next(n for n, v in official[1].items() if n.endswith(".weight") and v.ndim == 2 and n != name)
    lacking = {other: eight[other].to(torch.float8_e4m3fn), name + "_scale": torch.ones(1)}
    save_file(eight | lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(ValueError, match="has 8 bits and no scale, and others have one"):
        weights.load(tmp_path / "lacking.safetensors")


def test_a_marker_of_scales_goes_with_scales(official, wanted, tmp_path):
    """ComfyUI's: alone it says nothing of wide weights, and of 8-bit ones that their scales are lost."""
    marker = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    save_file(official[1] | marker, tmp_path / "wide.safetensors")
    found, carried = weights.load(tmp_path / "wide.safetensors")
    same(found, wanted)
    assert not carried
    name = next(n for n, v in official[1].items() if n.endswith(".weight") and v.ndim == 2)
    eight = {name: official[1][name].to(torch.float8_e4m3fn)}
    save_file(official[1] | eight | marker, tmp_path / "lost.safetensors")
    with pytest.raises(ValueError, match=r"its 8-bit weights are scaled \(scaled_fp8\), and holds no scale"):
        weights.load(tmp_path / "lost.safetensors")


@pytest.mark.parametrize("dangling", [False, True])
def test_a_missing_part_is_named_with_who_names_it(dangling, official, tmp_path):
    """A shard of an index, a piece of a distributed checkpoint, a file of a hub whose blob is gone."""
    names = sorted(official[1])
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:20], "c.safetensors": names[20:]}
    for file, own in parts.items():
        save_file({name: official[1][name].contiguous() for name in own}, tmp_path / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights.load(tmp_path)[0]
    write_pieces(tmp_path / "pieces", {(0, 0): torch.zeros(4, 6)})
    piece = next((tmp_path / "pieces").glob("*.distcp"))
    for file in (tmp_path / "b.safetensors", piece):
        file.unlink()
        if dangling:
            file.symlink_to("../blobs/0123")
    gone = r" is a link that leads nowhere" if dangling else " is missing"
    told = rf"b\.safetensors{gone}, which model\.safetensors\.index\.json names: download it, too"
    with pytest.raises(FileNotFoundError, match=told):
        weights.check(official[0], tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"\.distcp{gone}, which \.metadata names: copy"):
        distcp.read(tmp_path / "pieces")
    alone = tmp_path / "alone.safetensors"
    alone.symlink_to("../blobs/4567")
    with pytest.raises(FileNotFoundError, match=r"a link that leads nowhere: download the"):
        weights.check(official[0], alone)


def test_of_presets_of_one_width_the_one_with_its_heads_and_family_is_named(
    monkeypatch, make_network, tmp_path
):
    smoke = families.preset("transfer1-smoke")
    heads = {"heads": smoke.heads // 2, "head_dim": smoke.head_dim * 2}
    known = {"other-heads": dataclasses.replace(smoke, **heads), "transfer1-smoke": smoke}
    known["other-family"] = transfer25 = dataclasses.replace(
        families.preset("transfer2.5-2b"),
        **{name: getattr(smoke, name) for name in ("width", "blocks", "heads", "head_dim", "text_dim")},
    )
    monkeypatch.setattr(weights, "presets", lambda: known)
    monkeypatch.setattr(weights, "preset", known.__getitem__)
    for name, sizes in (
        ("transfer1-smoke", smoke),
        ("other-heads", known["other-heads"]),
        ("other-family", transfer25),
    ):
        weights.save(models.build(sizes), tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=rf": that is --network {name}\.$"):
            weights.check(make_network(), tmp_path / f"{name}.safetensors")


def test_weights_of_other_sizes_say_whose_they_are(make_network, tmp_path):
    """Of the sizes of a preset, that preset; of no preset's, the sizes."""
    for name in ("transfer1-smoke", "predict2.5-mini"):
        network = models.build(families.preset(name))
        weights.save(network, tmp_path / f"{name}.safetensors")
        blocks = network.config.blocks
        with pytest.raises(ValueError, match=rf"has {blocks} blocks of width .*: that is --network {name}"):
            weights.check(make_network(), tmp_path / f"{name}.safetensors")
    weights.save(make_network(), tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="3 blocks of width 40 and 2 of control, as no preset has"):
        weights.check(models.build(families.preset("transfer1-smoke")), tmp_path / "tiny.safetensors")
