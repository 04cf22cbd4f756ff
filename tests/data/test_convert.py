"""The converter reads arrays out of legacy pickles and runs nothing else in them."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cosmos_distill.data.convert import convert, main, read_pickle
from cosmos_distill.data.errors import DataError

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)
AV = {"pickle": {"ground_truth": {"embeddings": {"t5_xxl": [ARRAY]}}}}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "content",
    [
        ARRAY,
        ARRAY.astype(np.float16),
        np.asfortranarray(ARRAY),
        [ARRAY],
        {"t5_text_embeddings": [ARRAY]},
        AV,
        torch.from_numpy(ARRAY),
        {"t5_text_embeddings": torch.from_numpy(ARRAY).bfloat16()},
    ],
    ids=["array", "half", "fortran", "list", "dictionary", "driving", "tensor", "bf16"],
)
def test_every_legacy_form_is_read(tmp_path, content, protocol):
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_pickle(path).tolist() == ARRAY.tolist() and read_pickle(path).dtype == np.float32


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("suffix", [".pickle", ".pt"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, suffix):
    marker, path = tmp_path / "executed", tmp_path / f"a{suffix}"
    content = [ARRAY, Evil(os.mkdir, str(marker))]
    if suffix == ".pt":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="not converted"):
        read_pickle(path)
    assert not marker.exists()


def test_an_inner_torch_pickle_is_restricted_too(tmp_path):
    """torch's own _load_from_bytes would unpickle its argument freely."""
    marker, inner, path = tmp_path / "executed", tmp_path / "inner.pt", tmp_path / "a.pickle"
    torch.save(Evil(os.mkdir, str(marker)), inner)
    path.write_bytes(pickle.dumps(Evil(torch.storage._load_from_bytes, inner.read_bytes())))
    with pytest.raises(DataError, match="not converted"):
        read_pickle(path)
    assert not marker.exists()


def test_the_array_is_called_by_its_folder(tmp_path):
    for folder, key in (("noise", "noise"), ("t5_xxl", "t5_text_embeddings")):
        path = tmp_path / folder / "a.pickle"
        path.parent.mkdir()
        path.write_bytes(pickle.dumps([ARRAY]))
        assert load_file(convert(path))[key].tolist() == ARRAY.tolist()
        assert path.exists()


def test_command_converts_folders_and_reports_what_it_could_not(tmp_path, capsys):
    for name, content in (("a", ARRAY), ("b", [{"segmentation": "rle"}]), ("c", ARRAY * np.nan)):
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(content))
    (tmp_path / "d.pickle").write_bytes(b"\x80\x04broken")
    assert main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out.count("->") == 1 and "b.pickle: holds no plain array" in err and "write" in err
    assert "c.pickle: holds NaN" in err and "d.pickle: not converted" in err
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["a.safetensors"]
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1
