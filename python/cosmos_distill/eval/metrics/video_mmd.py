"""Do the clips look like real ones to a network with convolutions along time? Squared MMD in its features.

What an FVD is for, without I3D's weights. It overlooks noise, which the network was trained to do, and in
sets of some tens of clips it does not tell still clips from moving ones: that is what the measures of
motion are for.
"""

from __future__ import annotations

from cosmos_distill.eval.features import transnet
from cosmos_distill.eval.kernels import discrepancy, gaussian
from cosmos_distill.eval.metric import Metric

METRIC = Metric(
    title="video MMD",
    direction="lower",
    unit="squared MMD x 1000",
    source="Gretton et al. 2012, eq. 3, Gaussian kernel; TransNet V2's three convolutional stacks, mean and "
    "deviation over frames and positions",
    reads=transnet.motion,
    against=lambda reference: discrepancy(reference, gaussian, 1000.0),
    weights=(transnet.WEIGHTS,),
)
