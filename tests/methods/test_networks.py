"""All methods on a real network, at its smallest."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cosmos_distill
from cosmos_distill import models
from cosmos_distill.methods import Noise, build
from cosmos_distill.methods.denoising import Denoising
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.methods.kd import KD
from cosmos_distill.models.transfer1.config import PRESETS
from tests.methods.fake_network import make_batch

SMOKE = PRESETS["transfer1-smoke"]


def network(role):
    made = models.build(SMOKE, seed=1 if role == "student" else 0)
    with torch.no_grad():  # zero-initialised projections would let nothing through
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return made


@pytest.mark.parametrize("config, steps", [(Denoising(), (0,)), (KD(), (0,)), (DMD2(head_width=16), (0, 1))])
def test_every_role_whose_turn_it_is_gets_all_its_gradients(schedule, config, steps):
    method = build(config, network, schedule)
    batch = make_batch(2, shape=(SMOKE.latent_channels, 3, 8, 8))
    text = torch.randn(2, SMOKE.text_tokens, SMOKE.text_dim)
    batch.conditioning = replace(batch.conditioning, text=text, negative_text=torch.zeros_like(text))
    for step in steps:
        for role in method.roles.values():
            role.zero_grad()
        terms = method.losses(batch, step, Noise(0, step, 0, 2))
        assert all(term.shape == (2,) and term.isfinite().all() for term in terms.values())
        terms["total"].sum().backward()
        for role, module in method.roles.items():
            missing = [name for name, p in module.named_parameters() if p.grad is None]
            if role in method.phase(step):
                assert not missing
            else:
                assert len(missing) == len(list(module.parameters()))


def test_describing_methods_imports_no_torch():
    code = (
        "import sys; from cosmos_distill.methods import build; from cosmos_distill.methods.kd import KD; "
        "from cosmos_distill.methods.dmd2 import DMD2; "
        "from cosmos_distill.methods.denoising import Denoising; "
        "KD(), DMD2(), Denoising(); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(cosmos_distill.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
