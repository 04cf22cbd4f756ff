"""The metric is found by its name, has a score, and a recipe may ask for it."""

import torch

from cosmos_distill.eval import metrics
from cosmos_distill.eval.views import View

assert "psnr" in metrics.names()
metric = metrics.find("psnr")
real = torch.full((2, 3, 4, 8, 8), 100, dtype=torch.uint8)
numbers = metric.reads(View(real + 10, View(real)))
assert metric.pool is not None
assert abs(metric.pool(numbers, None) - 28.1308) < 1e-3  # 20 log10(255 / 10)
