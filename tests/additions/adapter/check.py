"""A tiny random LTX-Video network is distilled by DMD2 with a discriminator, and saved as diffusers' own."""

import copy

import torch
from diffusers import LTXVideoTransformer3DModel
from ltx import adapt

from cosmos_distill import DMD2, FewStep, Optim, ShiftedTime, Trainer, distill, sample

torch.manual_seed(0)
network = LTXVideoTransformer3DModel(
    in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
    num_layers=2, caption_channels=12,
)  # fmt: skip
samples = [{"latents": torch.randn(8, 2, 4, 4), "text": torch.randn(5, 12)} for _ in range(4)]
teacher = adapt(network)
student = copy.deepcopy(teacher)
before = [weight.clone() for weight in student.parameters()]
optim = Optim(lr=1e-4)
method = DMD2(
    sampler=FewStep(2), levels=ShiftedTime(), condition_frames=(1.0,), head_width=8, head="conv2d",
    student=optim, fake_score=optim, discriminator=optim,
)  # fmt: skip
result = distill(student, teacher, method, samples, "run", trainer=Trainer(max_steps=5, global_batch=2))
assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
latents = sample(result, {"text": torch.randn(1, 5, 12)}, shape=(8, 2, 4, 4), seed=1)
assert latents.shape == (1, 8, 2, 4, 4) and bool(latents.isfinite().all())
student.network.save_pretrained("student")
LTXVideoTransformer3DModel.from_pretrained("student")
