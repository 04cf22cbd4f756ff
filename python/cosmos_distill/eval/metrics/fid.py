"""FID: Fréchet distance of frames in features of Inception, or of another image network that the user gives.

Comparable with published values only with Inception's weights, all frames of some 10,000 clips, and as many
real ones; the network is named in the report.
"""

from __future__ import annotations

import math

from torch import Tensor

from cosmos_distill.eval import gaussians
from cosmos_distill.eval.features import given
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.views import View


def features(view: View) -> Tensor:
    """Of every frame of each clip, fp32 [B, F, D]."""
    return given.by_frame(given.network(view.networks["fid"], "image", view.device), view.video, view.device)


METRIC = Metric(
    title="FID",
    direction="lower",
    unit="squared distance of features",
    source="Heusel et al. 2017, eq. 6; Inception's pool3 (2,048 numbers), or the network given",
    reads=features,
    against=gaussians.frechet,
    network=True,
    centred=True,
    replicas=40,
    limits=(0.0, math.inf),
)
