"""Where ``cosmos-distill sample`` lay in 0.1: see :mod:`cosmos_distill.sampling.sample`."""

from cosmos_distill.data.write_video import write_mp4
from cosmos_distill.sampling.sample import draw

__all__ = ["draw", "write_mp4"]
