"""The files themselves: folders, mapping, pickles, damage, atomic writes."""

import io
import pickle

import pytest
import torch
from safetensors.torch import save_file

from cosmos_distill.models.common import weights


def test_a_sharded_folder_loads(make_network, merged, tmp_path):
    keys = sorted(merged)
    for i in range(2):
        save_file({k: merged[k] for k in keys[i::2]}, tmp_path / f"model-{i}.safetensors")
    with pytest.raises(
        ValueError, match=r"several checkpoints \(model-0\.safetensors, model-1\.safetensors\) and no index"
    ):
        weights.load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        '{"weight_map": {'
        + ", ".join(f'"{k}": "model-{n % 2}.safetensors"' for n, k in enumerate(keys))
        + "}}"
    )
    state, carried = weights.load(tmp_path)
    assert len(state) + len(carried) == len(merged)
    index.write_text('{"weight_map": {"x": "../secret.safetensors"}}')
    with pytest.raises(ValueError, match="points outside its folder"):
        weights.load(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="is no index"):
        weights.load(tmp_path)


def test_loading_reads_tensors_when_used(tmp_path):
    """A 256 MB file is mapped, not copied to the heap."""
    save_file({"base.x": torch.zeros(64 << 20)}, tmp_path / "big.safetensors")
    torch.save({"x_embedder.proj.1.weight": torch.zeros(64 << 20)}, tmp_path / "big.pt")

    def anonymous():  # kilobytes
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    for file in ("big.safetensors", "big.pt"):
        before = anonymous()
        state, _ = weights.load(tmp_path / file)
        assert float(sum(x.sum() for x in state.values())) == 0
        assert anonymous() - before < 64 << 10


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    target = tmp_path / "executed"
    torch.save({"net.x_embedder.proj.1.weight": torch.ones(1), "x": Evil(str(target))}, tmp_path / "zip.pt")
    with pytest.raises(ValueError, match="none of it was executed"):
        weights.load(tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(str(target))))
    with pytest.raises(ValueError, match=r"plain\.pt"):
        weights.load(tmp_path / "plain.pt")
    assert not target.exists()
    torch.load(tmp_path / "zip.pt", weights_only=False)["x"].close()
    assert target.exists()  # it would have


def test_extra_state_of_transformer_engine_is_kept(merged, tmp_path):
    name = "net.blocks.block0.blocks.0.block.attn.attn_op._extra_state"
    none = name.replace("block0", "block1")
    torch.save(merged | {name: io.BytesIO(b"\x01\x02"), none: None}, tmp_path / "te.pt")
    _, carried = weights.load(tmp_path / "te.pt")
    assert carried[name].tolist() == [1, 2]
    assert none not in carried


def test_damaged_and_absent_files(merged, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        weights.load(tmp_path / "absent.pt")
    save_file(merged, tmp_path / "x.safetensors")
    torch.save(merged, tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for file in ("x.safetensors", "x.pt"):
        data = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=rf"{file}.*download it again"):
            weights.load(tmp_path / file)
    with pytest.raises(ValueError, match="no state dict but list"):
        weights.load(tmp_path / "list.pt")


def test_a_failed_write_leaves_the_old_file(make_network, tmp_path, monkeypatch):
    network, path = make_network(), tmp_path / "x.safetensors"
    weights.save(network, path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        weights.save(make_network(seed=2), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
