"""Clips in WebDataset shards: the same samples as from a folder, and what is left out by name."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from cosmos_distill.config import Data
from cosmos_distill.data import archives
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index
from cosmos_distill.data.prefetch import Prefetch
from cosmos_distill.data.shard_lists import expanded, listed
from tests.data import folders
from tests.data.folders import digests, open_, write_folder
from tests.data.shards import of_folder, prepare, upload, write_shard

NAMES = [f"c{i:02d}" for i in range(6)]


def data(root: Path | str, source: str = "shards") -> Data:
    return Data(source=source, tokenizer="haar", frames=5, height=32, width=32, root=Path(root))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_folder(root, 6, frames=9, control="depth")
    return root


@pytest.fixture
def shards(clips: Path, tmp_path: Path) -> Path:
    """Two shards of three clips each."""
    for number in range(2):
        names = NAMES[3 * number : 3 * number + 3]
        write_shard(tmp_path / "shards" / f"{number:03d}.tar", of_folder(clips, names, "depth"))
    return tmp_path / "shards"


@pytest.mark.parametrize("control", ["edge", "depth"])
@pytest.mark.parametrize("where", ["disk", "file://", "memory://"])
def test_samples_are_those_of_the_folder_bit_for_bit(
    clips: Path, shards: Path, control: str, where: str
) -> None:
    root: Path | str = shards
    if where == "file://":
        root = f"file://{shards}"
    elif where == "memory://":
        root = upload(shards, f"memory://{shards.parent.name}-{control}")
    for split in ("train", "eval"):
        folder, archived = open_(data(clips, "folder"), control, split), open_(data(root), control, split)
        one, other = folder.batch(0, 8), archived.batch(0, 8)
        assert [n.rsplit("/", 1)[-1] for n in other.names] == list(one.names)
        for name, value in one.tensors().items():
            assert torch.equal(value, other.tensors()[name]), name
        assert torch.equal(folder.pixels(3, 2)[0], archived.pixels(3, 2)[0])
    assert open_(data(root), control).description()["clips"].keys() == {f"000/{n}" for n in NAMES[:3]} | {
        "001/c03", "001/c05",
    }  # fmt: skip


def test_workers_read_shards_too(shards: Path) -> None:
    source = open_(data(shards))
    ahead = Prefetch(source, workers=1)
    try:
        assert digests(ahead.batch(0, 2)) == digests(source.batch(0, 2))
        assert digests(ahead.batch(2, 2)) == digests(source.batch(2, 2))
    finally:
        ahead.close()


def test_patterns_and_single_shards(clips: Path, shards: Path, tmp_path: Path) -> None:
    assert list(expanded("a{08..11}-{x,y}.tar"))[:3] == ["a08-x.tar", "a08-y.tar", "a09-x.tar"]
    names = [[shard.name for shard in listed(Path(root)).shards] for root in (
        shards, f"{shards}/{{000..001}}.tar", f"{shards}/*.tar", f"{shards.parent}/*/00[01].tar",
    )]  # fmt: skip
    assert names[0] == names[1] == names[2] == names[3] == ["000", "001"]
    (only,) = listed(shards / "001.tar").shards
    assert only.name == "001"
    (tmp_path / "nested" / "b").mkdir(parents=True)
    shutil.copy(shards / "000.tar", tmp_path / "nested" / "b" / "000.tar")
    shutil.copy(shards / "001.tar", tmp_path / "nested" / "000.tar")
    assert [shard.name for shard in listed(tmp_path / "nested").shards] == ["000", "b/000"]
    for wrong, message in {
        f"{shards}/{{005..006}}.tar": "no such shard", f"{shards}/x*.tar": "matches no shard",
        f"{shards}/{{0..9999999}}.tar": "no range of shards", f"{shards}/{{000..000}}{{,}}.tar": "twice",
        str(clips): "holds no .tar file", "memory://nowhere": "no such|nowhere",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=message):
            open_(data(wrong))


def test_datasets_of_energon(clips: Path, shards: Path, tmp_path: Path) -> None:
    write_shard(shards / "more" / "002.tar", of_folder(clips, NAMES[:2], "depth"))
    split = {"train": ["{000,001}.tar"], "val": ["more/002.tar"], "test": []}
    for old in (False, True):
        root = tmp_path / f"prepared{old}"
        shutil.copytree(shards, root)
        prepare(root, split, ["000.tar/1"], old=old)
        train, held_out = open_(data(root)), open_(data(root), split="eval")
        assert set(train.description()["clips"]) == {"000/c00", "000/c02", "001/c03", "001/c04", "001/c05"}
        assert set(held_out.description()["clips"]) == {"more/002/c00", "more/002/c01"}
    (root / ".nv-meta" / "sample_loader.py").write_text("raise SystemExit('run')")
    open_(data(root))
    write_shard(root / "001.tar", of_folder(clips, ["c04", "c03", "c05"]))
    with pytest.raises(DataError, match=r"001\.tar is another one than its \.tar\.idx"):
        open_(data(root))
    (root / "001.tar.idx").unlink()
    open_(data(root), None)  # as many samples as it should have
    write_shard(root / "001.tar", of_folder(clips, ["c03", "c05"]))
    with pytest.raises(DataError, match=r"holds 2 samples, and its dataset says 3"):
        open_(data(root))
    (root / "001.tar").unlink()
    with pytest.raises(DataError, match=r"001\.tar is named by \.nv-meta and is not there"):
        open_(data(root))
    (root / ".nv-meta" / "split.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(DataError, match=r"split\.yaml cannot be read"):
        open_(data(root))
    (root / ".nv-meta" / "split.yaml").write_text("split_parts: {train: [../000.tar]}")
    with pytest.raises(DataError, match="no path inside"):
        open_(data(root))


def test_what_is_no_clip_is_named_and_left_out(clips: Path, shards: Path) -> None:
    path = shards / "002.tar"
    text = clips / "t5_xxl" / "c00.safetensors"
    video = clips / "videos" / "c00.mp4"
    with tarfile.open(path, "w") as tar:
        for name, file in {
            "good.mp4": video, "good.t5_xxl.safetensors": text, "good.json": text, "./dot.mp4": video,
            "./dot.t5_xxl.safetensors": text, "twice.mp4": video, "twice.t5_xxl.safetensors": text,
            "mute.mp4": video, "blind.t5_xxl.safetensors": text, ".hidden.mp4": video, "no-dot": video,
            "__meta__/x.mp4": video, "odd \udce9.mp4": video, "deep/er.mp4": video, "Upper.MP4": video,
            "Upper.t5_xxl.npz": text,
        }.items():  # fmt: skip
            tar.add(file, name)
        tar.add(video, "twice.mp4")
        for kind, name in ((tarfile.SYMTYPE, "link.mp4"), (tarfile.LNKTYPE, "hard.mp4"),
                           (tarfile.FIFOTYPE, "pipe.mp4"), (tarfile.DIRTYPE, "folder.mp4")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    shutil.copy(path, shards / "aside")
    with pytest.raises(DataError, match=r"Upper\.t5_xxl\.npz"):
        open_(data(shards))
    with tarfile.open(shards / "aside") as old, tarfile.open(path, "w") as tar:
        for info in old:
            if info.name != "Upper.t5_xxl.npz":
                tar.addfile(info, old.extractfile(info) if info.isreg() else None)
    source = open_(data(shards))
    names = set(source.description()["clips"]) | set(open_(data(shards), split="eval").description()["clips"])
    assert names == {
        *(f"000/{n}" for n in NAMES[:3]),
        *(f"001/{n}" for n in NAMES[3:]),
        "002/good",
        "002/dot",
    }
    skipped = {name: why for name, why in source.skipped.items() if "002/" in name}
    assert {name.removeprefix("002/"): why.split(":")[0] for name, why in skipped.items()} == {
        "twice.mp4": "is there twice", "twice": "its member twice.mp4 is there twice",
        "mute": "has no member mute.t5_xxl.safetensors", "blind": "has no video",
        "deep/er": "has no member er.t5_xxl.safetensors", "Upper": "has no member Upper.t5_xxl.safetensors",
        "odd \\udce9.mp4": "has a name that is not UTF-8", "link.mp4": "is a link", "hard.mp4": "is a link",
        "pipe.mp4": "is a device or a pipe",
    }  # fmt: skip


@pytest.mark.parametrize("share", [0.99, 0.6, 0.35])
def test_a_shard_that_is_cut_off_keeps_what_is_whole(clips: Path, tmp_path: Path, share: float) -> None:
    whole = write_shard(tmp_path / "w" / "0.tar", of_folder(clips, NAMES)).read_bytes()
    (tmp_path / "s").mkdir()
    cut = tmp_path / "s" / "0.tar"
    cut.write_bytes(whole[: int(len(whole) * share)])
    found = archives.contents(cut, Index(None))
    assert (found.fault is not None and 0 < len(found.members) < 12) or share == 0.99
    if share < 0.99:
        source = open_(data(cut), None)
        assert "cut off" in source.skipped[str(cut)]
        assert len(source.description()["clips"]) < 5


def test_no_archive_makes_the_reader_run_away(clips: Path, tmp_path: Path) -> None:
    """Compressed, empty, nonsense, and headers whose sizes are negative or lead back or beyond."""
    good = write_shard(tmp_path / "0.tar", of_folder(clips, ["c00"])).read_bytes()

    def sized(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
        info = tarfile.TarInfo("evil.mp4")
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        block[156:157] = kind
        block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
        return bytes(block)

    import gzip

    for content, message in (
        (gzip.compress(good), "compressed .gzip."), (b"", "is empty"), (b"x" * 5000, "no tar archive"),
        (bytes(10240), "no tar archive|no sample"), (sized(-512) + good, "no tar archive"),
        (sized(-(10**6), tarfile.XHDTYPE) + good, "no tar archive"),
        (sized(2**40, b"L") + good, "no tar archive"),
        (sized(2**50) + good, "no tar archive"),
    ):  # fmt: skip
        (tmp_path / "1.tar").write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_(data(tmp_path / "1.tar"))
    end = len(good.rstrip(b"\0")) + (-len(good.rstrip(b"\0")) % 512)
    for bad in (sized(-512), sized(-(10**7)), sized(2**50, b"x"), b"\1" * 512):
        (tmp_path / "1.tar").write_bytes(good[:end] + bad + good[:end])
        found = archives.contents(tmp_path / "1.tar", Index(None))
        assert len(found.members) == 2 and found.fault is not None


def test_damage_found_later_passes_over_one_window(clips: Path, tmp_path: Path) -> None:
    """A clip whose header is whole and whose pictures are lost is met in training, as in a folder."""
    root = tmp_path / "f"
    shutil.copytree(clips, root)
    folders.lose(root / "videos" / "c01.mp4", 0.0)
    write_shard(tmp_path / "s" / "0.tar", of_folder(root, NAMES))
    one, other = open_(data(root, "folder")), open_(data(tmp_path / "s"))
    assert [n.rsplit("/", 1)[-1] for n in other.batch(0, 12).names] == list(one.batch(0, 12).names)
    assert {n.rsplit("/", 1)[-1] for n in other.skipped} == set(one.skipped) == {"c01"}


def test_an_archive_that_changes_is_noticed(shards: Path, clips: Path) -> None:
    source = open_(data(shards))
    write_shard(shards / "000.tar", of_folder(clips, NAMES[3:6]))
    write_shard(shards / "001.tar", of_folder(clips, NAMES[:2]))
    with pytest.raises(DataError, match="was changed or removed"):
        source.batch(0, 16)


def test_what_lies_beside_shards_says_nothing(shards: Path) -> None:
    (shards / "wids-meta.json").write_text(json.dumps({"shardlist": [{"url": "/etc/passwd"}]}))
    (shards / ".cache").mkdir()
    (shards / ".cache" / "000.tar").write_bytes(io.BytesIO(b"nonsense").getvalue())
    assert [shard.name for shard in listed(shards).shards] == ["000", "001"]
