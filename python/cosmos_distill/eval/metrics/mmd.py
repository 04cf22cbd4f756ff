"""Do the clips look like real ones? Squared MMD in features of an ImageNet network.

The primary measure. It sees layout, texture and colour of frames, and nothing of motion.
"""

from __future__ import annotations

from cosmos_distill.eval.features import lite0
from cosmos_distill.eval.kernels import discrepancy, gaussian
from cosmos_distill.eval.metric import Metric

METRIC = Metric(
    title="MMD",
    direction="lower",
    unit="squared MMD x 1000",
    source="Gretton et al. 2012, eq. 3, Gaussian kernel; EfficientNet-Lite0 stages 2 and 4, mean and "
    "deviation over positions",
    reads=lite0.appearance,
    against=lambda reference: discrepancy(reference, gaussian, 1000.0),
    weights=(lite0.WEIGHTS,),
)
