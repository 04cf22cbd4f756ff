"""Low-rank adapters are added to the weights that they name, at the scale that their file says."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from cosmos_distill import cli
from cosmos_distill.models.common import weights
from tests.run.commands import PREDICT25

OFFICIAL = {"blocks.1.self_attn.q_proj": "base.blocks.1.self_attn.q.weight",
            "blocks.0.mlp.layer1": "base.blocks.0.mlp.up.weight"}  # fmt: skip
DIFFUSERS = {"transformer_blocks.1.attn1.to_q": "base.blocks.1.self_attn.q.weight",
             "transformer_blocks.0.ff.net.0.proj": "base.blocks.0.mlp.up.weight"}  # fmt: skip
RANK, ALPHA = 3, 6


@pytest.fixture
def base(make_predict, tmp_path):
    """(file, its tensors in our names)."""
    network = make_predict()
    weights.save(network, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors", {name: p.detach() for name, p in network.named_parameters()}


def factors(state, modules):
    """module -> (A, B) for the weights of ours that they stand for."""
    torch.manual_seed(0)
    found = {}
    for module, ours in modules.items():
        out, inner = state[ours].shape
        found[module] = torch.randn(RANK, inner), torch.randn(out, RANK)
    return found


def write(folder, pairs, naming, config=None, extra=None, **header):
    folder.mkdir(exist_ok=True)
    tensors = dict(extra or {})
    for module, (a, b) in pairs.items():
        tensors[naming.format(module, "A")], tensors[naming.format(module, "B")] = a, b
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt", **header})
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


PEFT = "base_model.model.{}.lora_{}.weight"


@pytest.mark.parametrize(
    ("naming", "modules"),
    [
        (PEFT, OFFICIAL),
        ("base_model.model.{}.lora_{}.default.weight", OFFICIAL),
        ("transformer.{}.lora_{}.weight", DIFFUSERS),
        ("{}.lora_{}.weight", DIFFUSERS),
    ],
)
def test_an_adapter_is_merged(naming, modules, base, tmp_path):
    file, state = base
    pairs = factors(state, modules)
    adapter = write(tmp_path / "lora", pairs, naming, {"r": RANK, "lora_alpha": ALPHA})
    for given in (adapter, adapter / "adapter_model.safetensors"):
        found, _ = weights.load((file, given))
        for name, value in state.items():
            module = next((m for m, ours in modules.items() if ours == name), None)
            wanted = value
            if module is not None:
                a, b = pairs[module]
                wanted = value + ALPHA / RANK * b @ a
                assert (found[name] - value).norm() > 1
            torch.testing.assert_close(found[name], wanted, rtol=1e-6, atol=1e-6)


def test_the_scale_is_what_the_file_says(base, tmp_path):
    file, state = base
    pairs = factors(state, dict([next(iter(OFFICIAL.items()))]))
    ((module, (a, b)),) = pairs.items()
    name = OFFICIAL[module]

    def scale(folder):
        change = weights.load((file, folder))[0][name] - state[name]
        update = b @ a
        return float((change * update).sum() / update.square().sum())

    def near(value):
        return pytest.approx(value, rel=1e-4)

    rs = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": True}
    assert scale(write(tmp_path / "rs", pairs, PEFT, rs)) == near(ALPHA / math.sqrt(RANK))
    alpha = {f"base_model.model.{module}.alpha": torch.tensor(1.5)}
    assert scale(write(tmp_path / "alpha", pairs, PEFT, extra=alpha)) == near(1.5 / RANK)
    header = {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 12})}
    assert scale(write(tmp_path / "header", pairs, PEFT, **header)) == near(4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": None}, "does not say its scale"),
        ({"config": {"lora_alpha": 1, "use_dora": True}}, "use_dora"),
        ({"config": {"lora_alpha": 1, "rank_pattern": {"q_proj": 8}}}, "rank_pattern"),
        ({"config": {"lora_alpha": "much"}}, "which is no number"),
        ({"config": {"lora_alpha": math.inf}}, "which is no number"),
        ({"extra": {"x.lora_magnitude_vector": torch.ones(2)}}, "no pair of low-rank matrices"),
        ({"extra": {"base_model.model.blocks.0.mlp.layer2.lora_A.weight": torch.ones(2, 2)}}, "no pair"),
        ({"pairs": {"blocks.9.mlp.layer1": (torch.ones(2, 40), torch.ones(160, 2))}}, "made for another"),
        ({"pairs": {"blocks.0.mlp.layer1": (torch.ones(2, 41), torch.ones(160, 2))}}, "does not fit"),
        ({"pairs": {"blocks.0.mlp.layer1": (torch.ones(3, 40), torch.ones(160, 2))}}, "does not fit"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(change, said, base, tmp_path):
    file, state = base
    given = {"pairs": factors(state, OFFICIAL), "naming": PEFT, "config": {"lora_alpha": 1}} | change
    with pytest.raises(ValueError, match=said):
        weights.load((file, write(tmp_path / "lora", **given)))


def test_the_teacher_of_a_recipe_takes_one(tmp_path, capsys):
    """--teacher-lora: held against the network by the dry run, before any work."""
    pair = {"blocks.0.mlp.layer1": (torch.randn(2, 48), torch.randn(192, 2))}
    good = write(tmp_path / "good", pair, PEFT, {"lora_alpha": 1})
    out = str(tmp_path / "out")
    command = [str(PREDICT25), "--scale", "smoke", "--dry-run", "--out", out, "--teacher-lora"]
    assert cli.main([*command, str(good)]) == 0
    capsys.readouterr()
    other = {"blocks.7.mlp.layer1": pair["blocks.0.mlp.layer1"]}
    assert cli.main([*command, str(write(tmp_path / "other", other, PEFT, {"lora_alpha": 1}))]) == 2
    assert "it was made for another" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert cli.main([*command, str(tmp_path / "nothing")]) == 2
    assert "--teacher-lora" in capsys.readouterr().err
