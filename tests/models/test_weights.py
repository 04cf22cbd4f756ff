"""Files of weights: the three official layouts, our own, and everything that must be refused."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_distill.models import build
from cosmos_distill.models.common import weights
from cosmos_distill.models.transfer1.names import Transfer1Names


def blank(make_network, dtype=torch.bfloat16, **changes):
    return build(dataclasses.replace(make_network().config, **changes), dtype=dtype, seed=None)


def same_bits(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    return (
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) if a.ndim else a == b
    )


def renamed(tensors, base, control, model_base="base_model.", model=""):
    """The merged tensors under other prefixes."""
    out = {}
    for name, value in tensors.items():
        for old, new in (
            ("base_model.net.", base), ("base_model.", model_base), ("net.", control), ("", model),
        ):  # fmt: skip
            if name.startswith(old):
                out[new + name.removeprefix(old)] = value
                break
    return out


def part(tensors, *prefixes):
    return {k: v for k, v in tensors.items() if k.startswith(prefixes)}


PUBLISHED = {
    "base.patch_embed.proj.weight": "base_model.net.x_embedder.proj.1.weight",
    "base.time_embed.linear_1.weight": "base_model.net.t_embedder.1.linear_1.weight",
    "base.time_embed.linear_2.weight": "base_model.net.t_embedder.1.linear_2.weight",
    "base.time_embed.norm.weight": "base_model.net.affline_norm.weight",
    "base.positions.t": "base_model.net.extra_pos_embedder.pos_emb_t",
    "control.positions.h": "net.extra_pos_embedder.pos_emb_h",
    "base.blocks.2.self_attn.q.weight": "base_model.net.blocks.block2.blocks.0.block.attn.to_q.0.weight",
    "base.blocks.2.self_attn.q_norm": "base_model.net.blocks.block2.blocks.0.block.attn.to_q.1.weight",
    "base.blocks.2.cross_attn.k_norm": "base_model.net.blocks.block2.blocks.1.block.attn.to_k.1.weight",
    "base.blocks.2.cross_attn.v.weight": "base_model.net.blocks.block2.blocks.1.block.attn.to_v.0.weight",
    "base.blocks.2.cross_attn.out.weight": "base_model.net.blocks.block2.blocks.1.block.attn.to_out.0.weight",
    "base.blocks.2.mlp.up.weight": "base_model.net.blocks.block2.blocks.2.block.layer1.weight",
    "base.blocks.2.mlp.down.weight": "base_model.net.blocks.block2.blocks.2.block.layer2.weight",
    "control.blocks.1.modulations.2.linear_1.weight": "net.blocks.block1.blocks.2.adaLN_modulation.1.weight",
    "control.blocks.0.modulations.0.linear_2.weight": "net.blocks.block0.blocks.0.adaLN_modulation.2.weight",
    "base.final_layer.modulation.linear_1.weight": "base_model.net.final_layer.adaLN_modulation.1.weight",
    "base.final_layer.linear.weight": "base_model.net.final_layer.linear.weight",
    "control.hint_embed.proj.weight": "net.x_embedder2.proj.1.weight",
    "control.hint_encoder.0.weight": "net.input_hint_block.0.weight",
    "control.hint_encoder.6.bias": "net.input_hint_block.6.bias",
    "control.zero_blocks.1.weight": "net.zero_blocks.block1.weight",
}


def test_official_names(make_network):
    """Literal names, as published: the map is not only its own inverse."""
    ours = make_network().state_dict()
    assert PUBLISHED.keys() <= ours.keys()
    names = Transfer1Names()
    assert names.to_official(PUBLISHED) == PUBLISHED
    assert len(set(names.to_official(ours).values())) == len(ours)
    with pytest.raises(ValueError, match="no official name"):
        names.to_official(["base.blocks.0.unknown"])


def test_official_round_trip_is_bit_exact(make_network, merged, unused, tmp_path):
    torch.save(merged, tmp_path / "edge_control.pt")
    network = blank(make_network)
    carried = weights.load_into(network, tmp_path / "edge_control.pt")
    assert carried.keys() == unused.keys()
    weights.save_official(network, tmp_path / "out.safetensors", carried)
    back = load_file(tmp_path / "out.safetensors")
    assert back.keys() == merged.keys()
    assert all(same_bits(back[k], merged[k]) for k in merged)
    again = blank(make_network)
    assert weights.load_into(again, tmp_path / "out.safetensors").keys() == carried.keys()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    "layout", ["distilled", "distilled without net", "pair net", "pair bare", "pair swapped"]
)
def test_every_official_layout_gives_the_same(make_network, merged, unused, tmp_path, layout):
    one, two = tmp_path / "one.pt", tmp_path / "two.safetensors"
    source = one
    if layout.startswith("distilled"):
        top = "net." if layout == "distilled" else ""
        torch.save(renamed(merged, f"{top}base_model.net.", f"{top}net_ctrl.", f"{top}base_model."), one)
    elif layout == "pair bare":  # state dicts of the networks alone: nothing of the model around them
        merged = {k: v for k, v in merged.items() if "logvar" not in k}
        torch.save(renamed(part(merged, "base_model.net."), "", "?"), one)
        save_file(renamed(part(merged, "net."), "?", ""), two)
        source = (one, two)
    else:
        torch.save(renamed(part(merged, "base_model."), "net.", "?", ""), one)
        save_file({k: v for k, v in merged.items() if not k.startswith("base_model.")}, two)
        source = (one, two) if layout == "pair net" else (two, one)
    state, carried = weights.load(source)
    expected = {k: v for k, v in merged.items() if k in unused}
    assert carried.keys() == expected.keys()
    assert all(same_bits(carried[k], expected[k]) for k in expected)
    assert all(same_bits(state[k], v) for k, v in make_network(torch.bfloat16).state_dict().items())


def test_our_own_file_and_casts(make_network, tmp_path):
    network = make_network()
    weights.save(network, tmp_path / "a" / "student.safetensors", dtype=torch.float16)
    raw = load_file(tmp_path / "a" / "student.safetensors")
    assert raw.keys() == network.state_dict().keys()
    assert {v.dtype for v in raw.values()} == {torch.float16}
    other = blank(make_network, torch.float32)
    assert weights.load_into(other, tmp_path / "a" / "student.safetensors") == {}
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a.half().float(), b)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["student.safetensors"]  # no temporary left


def test_what_does_not_fit_is_listed(make_network, merged, tmp_path):
    path = tmp_path / "x.safetensors"

    def refuse(tensors, *patterns, network=None):
        save_file(tensors, path)
        network = network or blank(make_network)
        with torch.no_grad():
            for p in network.parameters():
                p.fill_(7)
        with pytest.raises(ValueError) as error:
            weights.load_into(network, path)
        for pattern in (*patterns, "x.safetensors"):
            assert pattern in str(error.value)
        assert all(bool((p == 7).all()) for p in network.parameters())

    q = "base_model.net.blocks.block1.blocks.1.block.attn.to_q.0.weight"
    refuse({k: v for k, v in merged.items() if k != q}, "missing: base.blocks.1.cross_attn.q.weight.")
    refuse(merged | {"net.lora.weight": torch.ones(1)}, "unexpected: net.lora.weight")
    refuse(merged | {q: torch.ones(40, 41)}, "base.blocks.1.cross_attn.q.weight is [40, 41], not [40, 40]")
    refuse(merged | {q: torch.ones(40, 40, dtype=torch.int8)}, "cross_attn.q.weight is torch.int8")
    refuse(part(merged, "base_model."), "missing: control.", "pass the pair (base, control)")
    refuse(merged, "unexpected: base.blocks.2.", "preset", network=blank(make_network, blocks=2))
    refuse({"text_model.encoder.weight": torch.ones(1)}, "unexpected: text_model.encoder.weight")
    refuse({}, "holds no tensors")
    both = merged | {"x_embedder2.proj.1.weight": merged["net.x_embedder2.proj.1.weight"].clone()}
    refuse(both, "unexpected", "x_embedder2")


def test_two_files_of_the_same_half_are_refused(merged, tmp_path):
    for name in ("a", "b"):
        save_file(part(merged, "base_model."), tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="pass one base and one control file"):
        weights.load((tmp_path / "a.safetensors", tmp_path / "b.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights_are_refused(make_network, merged, tmp_path, value):
    name = "net.zero_blocks.block0.bias"
    bad = merged[name].clone()
    bad[3] = value
    save_file(merged | {name: bad}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"control\.zero_blocks\.0\.bias is not finite \(/\S+ is damaged"):
        weights.load_into(blank(make_network), tmp_path / "x.safetensors")
    network = make_network()
    with torch.no_grad():
        network.control.zero_blocks[0].bias[3] = value
    with pytest.raises(ValueError, match="not finite"):
        weights.save_official(network, tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


def test_a_cast_that_overflows_is_refused(make_network, tmp_path):
    network = make_network()
    with torch.no_grad():
        network.control.zero_blocks[0].bias[0] = 1e5
    weights.save(network, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        weights.load_into(blank(make_network, torch.float16), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="refusing to save"):
        weights.save(network, tmp_path / "y.safetensors", dtype=torch.float16)


def test_carried_tensors_cannot_replace_weights(make_network, tmp_path):
    name = "net.zero_blocks.block0.bias"
    with pytest.raises(ValueError, match=name):
        weights.save_official(make_network(), tmp_path / "x.safetensors", {name: torch.ones(40)})


@pytest.mark.parametrize(
    "control, name", [("edge", "edge"), ("hdmap", "hdmap"), ("lidar", "lidar"), ("upscale", "4kupscaler")]
)
def test_a_published_folder_has_a_file_for_each_control(tmp_path, control, name):
    for file in ("base_model", f"{name}_control"):
        (tmp_path / f"{file}.pt").touch()
    found = Transfer1Names().files(tmp_path, control)
    assert found == (tmp_path / "base_model.pt", tmp_path / f"{name}_control.pt")
    assert all(path.is_file() for path in found)
