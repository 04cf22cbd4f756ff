"""Captions become embeddings once, by content, whoever makes them; embeddings that are there go first."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_distill import text
from cosmos_distill.data import packages
from cosmos_distill.data.embeddings import Embeddings
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.sources import open_source
from cosmos_distill.storage import publish_tensors
from tests.data.folders import write_clip
from tests.data.shards import write_shard
from tests.real_formats import text_encoders as tiny

pytestmark = pytest.mark.needs("transformers")
TOKENS, WIDE = 16, 32
CAPTIONS = {f"c{i:02d}": f"a red car, number {i}" for i in range(6)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    tiny.t5(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


@pytest.fixture
def data(mini, tmp_path, encoder):
    root = tmp_path / "clips"
    for i, (name, caption) in enumerate(CAPTIONS.items()):
        write_clip(root / "videos" / f"{name}.mp4", 5, level=9 * i)
        (root / "captions").mkdir(exist_ok=True)
        (root / "captions" / f"{name}.txt").write_text(caption)
    return replace(mini, source="folder", root=root, stride=1, text_encoder=encoder)


def open_(data, split="train", tokens=TOKENS, channels=WIDE, **options):
    return open_source(
        data, None, 0, split=split, text_channels=channels, text_tokens=tokens, **options
    )  # fmt: skip


def texts(source):
    """What every clip is told, whichever split it is in."""
    samples = source._survey.samples.values()
    return {sample.name: torch.from_numpy(source._prompts.of(sample)) for sample in samples}


def files(cache):
    return sorted(path.name for path in cache.rglob("*.safetensors"))


def never(*_, **__):
    raise AssertionError("nothing has to be encoded")


def test_captions_are_what_the_encoder_makes_of_them(data, encoder, cache, monkeypatch):
    source = open_(data)
    found = texts(source)
    wanted = text.build(encoder, tokens=TOKENS)(list(CAPTIONS.values()))
    assert found.keys() == CAPTIONS.keys()
    for name, embedding in zip(CAPTIONS, wanted, strict=True):
        torch.testing.assert_close(found[name], embedding, rtol=2**-8, atol=1e-6)
        assert torch.equal(found[name], found[name].bfloat16().float())  # stored so
    batch = source.batch(0, 3)
    for name, row in zip(batch.names, batch.conditioning.text, strict=True):
        assert torch.equal(row, found[name.partition("[")[0]])
    assert len(files(cache)) == len(CAPTIONS)
    monkeypatch.setattr(text, "build", never)
    assert torch.equal(texts(open_(data))["c00"], found["c00"])


def test_content_decides_what_is_made_again(data, encoder, cache, monkeypatch, tmp_path):
    open_(data)
    before = files(cache)
    captions = data.root / "captions"
    (captions / "c00.txt").rename(captions / "renamed")
    (data.root / "captions.csv").write_text(f'file,caption\nvideos/c00.mp4,"{CAPTIONS["c00"]}"\n')
    with monkeypatch.context() as patched:
        patched.setattr(text, "build", never)
        open_(data)
        shutil.copytree(encoder, tmp_path / "elsewhere")
        open_(replace(data, text_encoder=tmp_path / "elsewhere"))
    (captions / "c01.txt").write_text("another car")
    open_(data)
    assert len(set(files(cache)) - set(before)) == 1
    tiny.t5(tmp_path / "elsewhere", seed=1)
    other = texts(open_(replace(data, text_encoder=tmp_path / "elsewhere")))
    assert len(files(cache)) == 2 * len(CAPTIONS) + 1
    assert not torch.equal(other["c02"], texts(open_(data))["c02"])
    open_(data, tokens=8)
    assert len(files(cache)) == 3 * len(CAPTIONS) + 1


def test_embeddings_go_before_captions_and_both_are_counted(data, tmp_path):
    own = np.random.default_rng(0).standard_normal((5, WIDE)).astype(np.float32)
    (data.root / "t5_xxl").mkdir()
    np.savez(data.root / "t5_xxl" / "c00.npz", t5_text_embeddings=own)
    (data.root / "captions" / "c01.txt").unlink()
    (data.root / "metas").mkdir()
    (data.root / "metas" / "c01.txt").write_text("of metas")
    source = open_(data)
    assert torch.equal(texts(source)["c00"][:5], torch.from_numpy(own))
    said = source.description()["text"]
    assert said["embeddings"] == 1 and said["captions"] == {"captions": 3, "metas": 1} and said["cut"] == {}
    assert said["encoder"]["kind"] == "t5" and said["encoder"]["sha256"] == text.fingerprint(
        data.text_encoder
    )
    json.dumps(said)


def test_clips_without_a_usable_caption_are_skipped_by_name(data, caplog):
    (data.root / "captions" / "c00.txt").write_text("")
    (data.root / "captions" / "c01.txt").unlink()
    (data.root / "captions" / "c02.txt").write_text("red " * 200)
    with caplog.at_level(logging.WARNING):
        source = open_(data)
    assert source.skipped == {
        "c00": "has no t5_xxl/c00.safetensors, and its caption in captions/c00.txt is empty",
        "c01": "has no t5_xxl/c01.safetensors, and has no caption (captions/c01.txt, metas/c01.txt, or a "
               "line of captions.csv)",
    }  # fmt: skip
    said = source.description()["text"]["cut"]
    assert said.keys() == {"c02"} and said["c02"] > 200
    assert f"of the {said['c02']} tokens of its caption the 16" in caplog.text
    assert open_(data).description()["text"]["cut"] == said  # and of those that are there already


def test_a_caption_beside_its_clip_is_no_odd_file(data):
    for path in (data.root / "captions").iterdir():
        path.rename(data.root / "videos" / path.name)
    (data.root / "videos" / "notes.txt").write_text("x")
    source = open_(data)
    assert source.skipped == {"notes.txt": "is no video"}
    assert source.description()["text"]["captions"] == {"videos": 5}


def test_captions_that_contradict_each_other_end_it(data):
    (data.root / "captions.json").write_text(json.dumps({"c00": "a blue car"}))
    with pytest.raises(DataError, match="clip c00 has two captions"):
        open_(data)


def test_without_an_encoder_captions_are_said_to_need_one(data):
    with pytest.raises(
        DataError, match=r"c00: has no t5_xxl/c00.safetensors; its caption needs a text encoder"
    ):
        open_(replace(data, text_encoder=None))


def test_the_negative_prompt_is_a_text_or_a_file(data, encoder, tmp_path):
    assert not open_(data).batch(0, 1).conditioning.negative_text.any()
    wanted = text.build(encoder, tokens=TOKENS)(["an old game"])[0]
    (tmp_path / "negative.txt").write_text("an old game\n")
    for given in ("an old game", str(tmp_path / "negative.txt")):
        found = open_(replace(data, negative_prompt=given)).batch(0, 2).conditioning.negative_text
        torch.testing.assert_close(found[1], wanted, rtol=2**-8, atol=1e-6)
    np.savez(tmp_path / "negative.npz", t5_text_embeddings=wanted.numpy())
    found = open_(replace(data, negative_prompt=str(tmp_path / "negative.npz"))).batch(0, 1)
    assert torch.equal(found.conditioning.negative_text[0], wanted)
    (tmp_path / "negative.txt").write_text("")
    with pytest.raises(DataError, match=r"negative.txt is empty"):
        open_(replace(data, negative_prompt=str(tmp_path / "negative.txt")))


def test_an_encoder_of_another_width_is_refused(data):
    with pytest.raises(DataError, match="of 32 channels, and the network takes 64"):
        open_(data, channels=64)


@pytest.mark.parametrize("damage", ["cut off", "a byte", "gone", "another width", "no embedding"])
def test_a_damaged_embedding_is_made_again(damage, data, cache):
    wanted = texts(open_(data))
    for path in cache.rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        path.unlink()
        if damage == "cut off":
            path.write_bytes(content[:-7])
        elif damage == "a byte":
            content[-3] ^= 1
            path.write_bytes(content)
        elif damage == "another width":
            publish_tensors({"t5_text_embeddings": torch.zeros(3, 8)}, path, {"said": 3})
        elif damage == "no embedding":
            publish_tensors({"x": torch.zeros(3, WIDE)}, path, {})
    again = texts(open_(data))
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)


def test_who_shares_a_batch_changes_nothing(encoder, tmp_path, monkeypatch):
    """As on an accelerator, where batches are of more than one."""
    from cosmos_distill.data import embeddings as module

    prompts = [f"{'red ' * i} car" for i in range(11)]
    found = []
    for place, some in (("all", prompts), ("few", prompts[2:5])):
        store = Embeddings(encoder, TOKENS, folder=tmp_path / place)
        maker = module._Maker(store, some, "cpu")
        for prompt in some:
            store.path(prompt).parent.mkdir(parents=True, exist_ok=True)
        if place == "few":
            for prompt in some:
                maker._encode([prompt], 8)
        else:
            for first in range(0, len(some), 8):
                maker._encode(some[first : first + 8], 8)
        found.append([store.read(prompt) for prompt in prompts[2:5]])
    for one, other in zip(*found, strict=True):
        assert (one == other).all() and one.any()


def test_two_that_need_the_same_share_the_work(encoder, tmp_path, monkeypatch):
    """Locks are of open files, so that threads stand for processes."""
    prompts = [f"car {i}" for i in range(40)]
    counts = [0, 0]
    build, both = text.build, threading.Barrier(2)

    def counted(*args, **options):
        inner = build(*args, **options)
        place = both.wait(60)  # neither is done before the other begins

        class Counted:
            lengths = inner.lengths

            def __call__(self, some):
                counts[place] += len(some)
                return inner(some)

        return Counted()

    monkeypatch.setattr(text, "build", counted)
    stores = [Embeddings(encoder, TOKENS, folder=tmp_path / "shared") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda store: store.make(prompts), stores))
    assert sum(counts) == 40 and min(counts) > 0
    assert made[0].keys() == made[1].keys() == set(prompts)


def test_numbers_that_are_none_are_refused(data, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(data.text_encoder, broken)
    state = load_file(broken / "model.safetensors")
    state["encoder.final_layer_norm.weight"][3] = float("nan")
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="gives NaN or infinity for 'a red car"):
        open_(replace(data, text_encoder=broken))


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "has no weights"),
    ],
)
def test_what_an_encoder_lacks_is_named(lost, said, data, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(data.text_encoder, broken)
    (broken / lost).unlink()
    with pytest.raises(DataError, match=said):
        open_(replace(data, text_encoder=broken))


def test_widths_are_read_off_configurations(encoder, tmp_path):
    assert text.channels(encoder) == 32
    tiny.reason1(tmp_path)
    assert text.channels(tmp_path) == 3 * 32
    said = json.loads((tmp_path / "config.json").read_text())
    flat = {k: v for k, v in said.items() if k != "text_config"} | said["text_config"]
    (tmp_path / "config.json").write_text(json.dumps(flat | {"model_type": "qwen2_5_vl"}))
    assert text.channels(tmp_path) == 3 * 32
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": "wide"}))
    with pytest.raises(ValueError, match="does not say how wide"):
        text.channels(Path(tmp_path))


class Doubling:
    """A projection that is easily recognised: half the channels, doubled, and one more."""

    sha256, width = "doubling", WIDE // 2

    def __init__(self):
        self.freed = 0

    def __call__(self, wide):
        return 2 * wide[..., : self.width] + 1

    def free(self):
        self.freed += 1


def test_captions_are_stored_behind_the_projection(data, encoder, cache):
    wide = texts(open_(data))
    projection = Doubling()
    source = open_(replace(data, negative_prompt="an old game"), projection=projection)
    assert source.text_shape == (TOKENS, WIDE // 2) and projection.freed == 1
    found = texts(source)
    for name in CAPTIONS:
        torch.testing.assert_close(found[name], 2 * wide[name][:, : WIDE // 2] + 1, rtol=2**-6, atol=2**-6)
        assert torch.equal(found[name], found[name].bfloat16().float())
    batch = source.batch(0, 2).conditioning
    assert batch.text.shape == batch.negative_text.shape == (2, TOKENS, WIDE // 2)
    nothing = open_(data, projection=Doubling()).batch(0, 1).conditioning.negative_text
    assert torch.equal(nothing, torch.ones_like(nothing))  # what the projection makes of zeros
    assert len(files(cache)) == 2 * len(CAPTIONS) + 1
    assert source.description()["text"]["encoder"]["projection"] == "doubling"


def test_a_wide_embedding_beside_captions_is_projected_as_it_is_read(data, tmp_path):
    own = np.random.default_rng(0).standard_normal((5, WIDE)).astype(np.float32)
    (data.root / "t5_xxl").mkdir()
    np.savez(data.root / "t5_xxl" / "c00.npz", t5_text_embeddings=own)
    found = texts(open_(data, projection=Doubling()))
    wanted = torch.from_numpy(2 * own[:, : WIDE // 2] + 1).bfloat16().float()
    assert torch.equal(found["c00"][:5], wanted) and torch.equal(found["c00"][5:], torch.ones(11, WIDE // 2))
    for path in (data.root / "captions").iterdir():
        np.savez(data.root / "t5_xxl" / f"{path.stem}.npz", t5_text_embeddings=own)
        path.unlink()
    alone = open_(data, projection=Doubling())  # nothing to encode: as ever
    assert alone.text_shape == (TOKENS, WIDE) and torch.equal(texts(alone)["c00"][:5], torch.from_numpy(own))


def test_folders_of_a_mixture_are_told_alike(data, mini, tmp_path):
    """One has captions, the other wide embeddings: their samples share batches."""
    own = np.random.default_rng(0).standard_normal((5, WIDE)).astype(np.float32)
    for i in range(5):
        write_clip(tmp_path / "other" / "videos" / f"d{i}.mp4", 5, level=9 * i)
        (tmp_path / "other" / "t5_xxl").mkdir(exist_ok=True)
        np.savez(tmp_path / "other" / "t5_xxl" / f"d{i}.npz", t5_text_embeddings=own)
    both = replace(data, root=None, sources=(str(data.root), str(tmp_path / "other")))
    for projection, width in ((None, WIDE), (Doubling(), WIDE // 2)):
        batch = open_(both, projection=projection).batch(0, 8)
        assert batch.conditioning.text.shape == (8, TOKENS, width)
        assert batch.conditioning.negative_text.shape == (8, TOKENS, width)
        assert {name.partition("/")[0] for name in batch.names} == {"clips", "other"}


def test_captions_in_shards_are_those_of_a_folder(data, tmp_path, encoder):
    """A txt or json member, as well as a file; encoded clips need the encoder no more."""
    samples = {
        name: {"mp4": data.root / "videos" / f"{name}.mp4", "txt": caption.encode()}
        for name, caption in CAPTIONS.items()
    }
    samples["c01"] = {"json": json.dumps({"caption": CAPTIONS["c01"], "fps": 24}).encode(), **samples["c01"]}
    del samples["c01"]["txt"]
    samples["c05"] |= {"txt": b"  \n"}
    write_shard(tmp_path / "shards" / "0.tar", samples)
    archived = replace(data, source="shards", root=tmp_path / "shards")
    source, folder = open_(archived), open_(data)
    assert source.skipped == {"0/c05": "its caption in c05.txt is empty"}
    found, wanted = texts(source), texts(folder)
    assert {name.removeprefix("0/") for name in found} == CAPTIONS.keys() - {"c05"}
    assert all(torch.equal(found[name], wanted[name.removeprefix("0/")]) for name in found)
    with pytest.raises(DataError, match="needs a text encoder"):
        open_(replace(archived, text_encoder=None))
    write_shard(tmp_path / "wrong" / "0.tar", {"c00": {**samples["c00"], "txt": b"\xff\xfe\xff"}})
    with pytest.raises(DataError, match=r"0\.tar/c00\.txt"):
        open_(replace(archived, root=tmp_path / "wrong"))
