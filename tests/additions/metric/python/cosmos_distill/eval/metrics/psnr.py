"""How near is each clip to the real one that its control came from, pixel by pixel?"""

from torch import Tensor

from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.pools import mean
from cosmos_distill.eval.views import View


def decibels(view: View) -> Tensor:
    """Peak signal-to-noise ratio of each clip, fp64 [B]; equal clips have that of an error of 1e-4 levels."""
    errors = (view.video.double() - view.real.video.double()).square().flatten(1).mean(1)
    return 10 * (255**2 / errors.clamp(min=1e-8)).log10()


METRIC = Metric(
    title="PSNR",
    direction="higher",
    unit="dB",
    source="10 log10(255^2 / mean squared error)",
    reads=decibels,
    pool=mean,
    paired=True,
)
