"""Are the segments of a generated clip where the real one has them? Mean IoU by a segmenter given."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill.eval.features import given
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.pools import mean
from cosmos_distill.eval.views import View


def mean_iou(found: Tensor, wanted: Tensor) -> float:
    """Mean over the segments of ``wanted`` of the IoU with the segment of ``found`` that fits it best; both
    are labels, integers [H, W]. Which label a segment has does not matter, so numbered masks may be
    compared, too."""
    there, wanted = wanted.unique(return_inverse=True)
    here, found = found.unique(return_inverse=True)
    pairs = torch.bincount((wanted * len(here) + found).flatten(), minlength=len(there) * len(here))
    common = pairs.view(len(there), len(here)).double()
    union = common.sum(1, keepdim=True) + common.sum(0, keepdim=True) - common
    return float((common / union).amax(1).mean())


def labels(view: View) -> Tensor:
    """Of every pixel of every frame, int32 [B, F, H, W]."""
    run = given.network(view.networks["seg_miou"], "segmentation", view.device)
    return given.by_frame(lambda frames: run(frames).int(), view.video, view.device)


def overlaps(view: View) -> Tensor:
    """Mean over the frames of each clip, fp64 [B]."""
    clips = zip(view.of(labels), view.real.of(labels), strict=True)
    means = [[mean_iou(f, w) for f, w in zip(*clip, strict=True)] for clip in clips]
    return torch.tensor(means, dtype=torch.float64).mean(1)


METRIC = Metric(
    title="seg mIoU",
    direction="higher",
    unit="intersection over union",
    source="each real segment with the generated one that fits it best, mean over segments and frames; "
    "segments by the network given",
    reads=overlaps,
    pool=mean,
    paired=True,
    network=True,
)
