"""FVD: Fréchet distance of clips in features of I3D, or of VideoMAE, from the user's disk.

Comparable with published values only with the same network, number of frames and clips; the network is
named in the report.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cosmos_distill.eval import gaussians
from cosmos_distill.eval.features import given
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.views import View


def features(view: View) -> Tensor:
    """Of every window in time of each clip, fp32 [B, W, D]: I3D sees the whole clip, VideoMAE its 16
    frames."""
    run = given.network(view.networks["fvd"], "video", view.device)
    return torch.cat([run(clip.to(view.device)).cpu() for clip in view.video.split(1)])


METRIC = Metric(
    title="FVD",
    direction="lower",
    unit="squared distance of features",
    source="Unterthiner et al. 2018, eq. 2; I3D's logits, or the mean token of the VideoMAE given",
    reads=features,
    against=gaussians.frechet,
    network=True,
    centred=True,
    replicas=40,
    limits=(0.0, math.inf),
)
