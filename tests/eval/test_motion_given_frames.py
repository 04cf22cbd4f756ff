"""Motion energy and given frames."""

import pytest
import torch

from cosmos_distill.eval.metrics import given_frames, motion
from cosmos_distill.eval.missing import NoScore


def test_motion_is_relative_to_the_real_clips() -> None:
    real = torch.randint(0, 256, (4, 3, 5, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    still = real[:, :, :1].expand_as(real)
    assert motion.score(motion.energies(real, real)) == 1.0
    assert motion.score(motion.energies(still, real)) == 0.0
    for made in (still, real):
        with pytest.raises(NoScore, match="no real clip moves"):
            motion.score(motion.energies(made, still))
    step = torch.zeros_like(real)
    step[:, :, 2:] = 51  # one jump of 0.4 among four differences
    energies = motion.energies(step, real)
    assert energies[:, 0].tolist() == pytest.approx([0.4**2 / 4] * 4)
    half = real.clone()
    half[2:] = still[2:]
    found = motion.energies(half, real)
    only_first = torch.tensor([1.0, 1, 0, 0])
    assert 0.3 < motion.score(found) < 0.7 and motion.score(found, only_first) == 1.0
    with pytest.raises(ValueError, match="2 frames"):
        motion.energies(real[:, :, :1], real)


def test_given_frames_are_compared_where_they_were_given() -> None:
    wanted = torch.full((3, 3, 5, 4, 4), 100, dtype=torch.uint8)
    video = wanted.clone()
    video[0] += 9  # nothing was given
    video[2, :, 3:] += 9  # beyond what was given
    errors = given_frames.squared_errors(video, wanted, [0, 1, 3])
    assert torch.equal(errors.isnan().sum(1), torch.tensor([5, 4, 2]))
    assert given_frames.summary(errors) == {"psnr": [100.0] * 3, "exact": True, "clips": [2, 1, 1]}
    video[2, :, 1] += 1
    found = given_frames.summary(given_frames.squared_errors(video, wanted, [0, 1, 3]))
    assert found["psnr"] == [100.0, pytest.approx(48.13, abs=0.01), 100.0] and not found["exact"]
