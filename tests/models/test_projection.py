"""What is stored behind the frozen text projection is read as the wide embedding is."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from safetensors.torch import save_file

from cosmos_distill.models.common import weights
from cosmos_distill.models.common.projection import TextProjection


def behind(network, text):
    return network.base.text_projection(text)


def test_a_network_reads_either_form_alike(make_predict, predict_inputs):
    network, inputs = make_predict(), predict_inputs()
    wide = network(**inputs)
    narrow = behind(network, inputs["text"])
    assert narrow.shape == (2, 5, 24)
    assert torch.equal(network(**inputs | {"text": narrow}), wide)
    stored = network(**inputs | {"text": narrow.bfloat16().float()})
    assert 0 < (stored - wide).norm() < 2**-8 * wide.norm()
    with pytest.raises(RuntimeError):  # neither form
        network(**inputs | {"text": narrow[..., :-1]})


def test_in_bf16_the_stored_form_is_the_wide_one_bit_for_bit(make_predict, predict_inputs):
    """The network rounds what is behind its projection to bf16, too."""
    network, inputs = make_predict(torch.bfloat16), predict_inputs(dtype=torch.bfloat16)
    narrow = behind(network, inputs["text"])
    assert torch.equal(network(**inputs | {"text": narrow}), network(**inputs))


def test_where_both_are_of_one_width_a_network_projects(make_network, predict_inputs):
    from tests.models.conftest import TINY_PREDICT

    network = make_network(config=dataclasses.replace(TINY_PREDICT, text_projection=24))
    inputs = predict_inputs()
    inputs["text"] = inputs["text"][..., :24]
    given = network(**inputs)
    network.base.text_projection.proj.weight.data.mul_(2)
    assert not torch.equal(network(**inputs), given)


def test_from_files_it_computes_what_the_network_does(make_predict, predict_inputs, tmp_path):
    network, text = make_predict(torch.bfloat16), predict_inputs()["text"]
    weights.save(network, tmp_path / "own.safetensors", dtype=torch.float32)
    official = weights.to_official(network.state_dict(), network.family)
    torch.save(official, tmp_path / "official.pt")
    found = [TextProjection(tmp_path / name) for name in ("own.safetensors", "official.pt")]
    assert found[0].sha256 == found[1].sha256 and found[0].width == 24
    for projection in found:
        assert torch.equal(projection(text), behind(network.float(), text))
        assert torch.equal(projection(text.bfloat16()), behind(network.bfloat16(), text.bfloat16()))
    network.base.text_projection.proj.bias.data[3] += 0.5
    weights.save(network, tmp_path / "other.safetensors")
    assert TextProjection(tmp_path / "other.safetensors").sha256 != found[0].sha256


def test_a_copy_in_another_process_carries_no_tensors(make_predict, predict_inputs, tmp_path):
    network, text = make_predict(), predict_inputs()["text"]
    weights.save(network, tmp_path / "own.safetensors")
    projection = TextProjection((tmp_path / "own.safetensors",))
    wanted = projection(text)
    sent = pickle.dumps(projection)
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent)(text), wanted)
    projection.free()
    assert torch.equal(projection(text), wanted)


def test_weights_without_the_layer_are_refused(make_network, tmp_path):
    weights.save(make_network(), tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match=r"has no base.text_projection.proj.bias"):
        _ = TextProjection(tmp_path / "own.safetensors").sha256
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError):
        _ = TextProjection(tmp_path / "other.safetensors").sha256
