"""Networks that the user gives: tiny random ones, saved as transformers and TorchScript save them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cosmos_distill.data.errors import DataError
from cosmos_distill.eval.features import given
from cosmos_distill.eval.measure import Readings, document, load
from cosmos_distill.eval.metrics import depth_rmse, seg_miou
from cosmos_distill.eval.views import View

CPU = torch.device("cpu")


def video(count: int, seed: int = 0, frames: int = 4) -> Tensor:
    """Smooth random clips that differ from each other, uint8 [B, 3, F, 32, 48]."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count * frames, 3, 4, 6, generator=random)
    fine = nn.functional.interpolate(coarse, (32, 48), mode="bicubic", align_corners=True)
    return (255 * fine.clamp(0, 1)).byte().unflatten(0, (count, frames)).transpose(1, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Metric -> folder of a tiny network of transformers with random weights."""
    import transformers

    torch.manual_seed(0)
    base = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    backbone = transformers.Dinov2Config(
        **base, out_features=["stage1", "stage2"], reshape_hidden_states=False, apply_layernorm=True
    )
    networks = {
        "fid": transformers.Dinov2Model(transformers.Dinov2Config(**base)),
        "fvd": transformers.VideoMAEModel(
            transformers.VideoMAEConfig(
                **base | {"patch_size": 14}, num_frames=4, tubelet_size=2, intermediate_size=32
            )
        ),
        "depth_rmse": transformers.DepthAnythingForDepthEstimation(
            transformers.DepthAnythingConfig(
                backbone_config=backbone,
                reassemble_hidden_size=16,
                patch_size=14,
                reassemble_factors=[1, 1],
                neck_hidden_sizes=[8, 8],
                fusion_hidden_size=8,
                head_hidden_size=8,
            )
        ),
        "seg_miou": transformers.SegformerForSemanticSegmentation(
            transformers.SegformerConfig(
                num_labels=5,
                hidden_sizes=[8, 8, 8, 8],
                depths=[1, 1, 1, 1],
                num_attention_heads=[1, 1, 1, 1],
                decoder_hidden_size=8,
                image_size=64,
            )
        ),
    }
    root = tmp_path_factory.mktemp("networks")
    for name, network in networks.items():
        for parameter in network.parameters():  # the usual initialisation makes nearly constant outputs
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.5)
        network.save_pretrained(root / name)
    (root / "depth_rmse" / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 42, "width": 42}, "keep_aspect_ratio": True, "ensure_multiple_of": 14})
    )
    return {name: root / name for name in networks}


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("metric", ["fid", "fvd", "depth_rmse", "seg_miou"])
def test_a_metric_tells_wrong_clips_from_right_ones(metric: str, folders: dict[str, Path]) -> None:
    real, other, reference = video(12), video(12, seed=5), video(24, seed=1)
    metrics = load([metric])

    def read(clips: Tensor, of: Tensor | None = None) -> Readings:
        found = Readings(metrics, as_set=of is None)
        whole = None if of is None else View(of, networks=folders)
        found.add(View(clips, whole, networks=folders), torch.arange(len(clips)))
        return found

    dark = (real.float() * 0.3).byte()
    sets = {"same": read(real, real), "other": read(other, real), "dark": read(dark, real)}
    found = document(metrics, sets, read(real, real), read(reference))
    values = {who: found["metrics"][who][metric] for who in sets}
    paired = metric in ("depth_rmse", "seg_miou")
    exact = {"depth_rmse": 0.0, "seg_miou": 1.0}
    if paired:
        assert values["same"] == pytest.approx(exact[metric], abs=1e-9)
    wrong = "other" if paired else "dark"
    apart = found["differences"][f"{wrong}-same"][metric]
    sign = -1 if metric == "seg_miou" else 1
    assert sign * apart["value"] > 0 and min(sign * apart["low"], sign * apart["high"]) > 0


def test_depth_has_no_scale_and_an_error_that_can_be_done_by_hand() -> None:
    wanted = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    assert float(depth_rmse.scale_invariant(3 * wanted, wanted)) == pytest.approx(0, abs=1e-9)
    found = torch.tensor([[1.0, 2.0], [4.0, 8.0 * 2.718281828]])
    assert float(depth_rmse.scale_invariant(found, wanted)) == pytest.approx((1 / 4 - 1 / 16) ** 0.5)
    flat = depth_rmse.scale_invariant(torch.zeros(1, 2, 2), wanted[None])
    assert torch.isfinite(flat).all() and float(flat) > 0.5
    assert float(depth_rmse.scale_invariant(torch.zeros(2, 2), torch.zeros(2, 2))) == 0
    some = torch.tensor([[0.0, 2.0], [4.0, 8.0]])  # networks end in a ReLU
    assert torch.isfinite(depth_rmse.scale_invariant(some, wanted))


def test_segments_are_compared_by_where_they_are() -> None:
    wanted = torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2]])
    assert seg_miou.mean_iou(wanted, wanted) == 1
    assert seg_miou.mean_iou(7 * wanted, wanted) == 1  # a label's number means nothing
    moved = torch.tensor([[5, 9, 9, 9], [5, 9, 9, 9]])
    assert seg_miou.mean_iou(moved, wanted) == pytest.approx((2 / 4 + 4 / 6) / 2)
    assert seg_miou.mean_iou(torch.zeros(2, 4).long(), wanted) == pytest.approx(0.5)


@pytest.mark.needs("transformers")
def test_frames_are_prepared_as_the_folder_says(folders: dict[str, Path], tmp_path: Path) -> None:
    frames = torch.full((1, 3, 30, 60), 51, dtype=torch.uint8)
    said = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 42},
        "ensure_multiple_of": 14,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found = given._Preparation(tmp_path, {})(frames)
    assert found.shape == (1, 3, 42, 84)
    assert found[0, :, 5, 5].tolist() == pytest.approx([0.2, 0.0, -0.2], abs=1e-5)
    assert given._Preparation(tmp_path / "none", {"image_size": [28, 56]})(frames).shape == (1, 3, 28, 56)
    run = given.network(folders["depth_rmse"], "depth", CPU)
    assert run(video(1)[0].transpose(0, 1)).shape == (4, 32, 48)


def test_windows_in_time() -> None:
    clip = torch.arange(10).view(1, 1, 10, 1, 1).expand(1, 3, 10, 2, 2)
    found = given._windows(clip, 4)
    assert found.shape == (1, 2, 3, 4, 2, 2)
    assert found[0, :, 0, :, 0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert given._windows(clip[:, :, :3], 5)[0, 0, 0, :, 0, 0].tolist() == [0, 0, 1, 2, 2]


class Frames(nn.Module):
    """Features of frames; has an option of the published files."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        features = x.mean((2, 3))
        return features if return_features else features[:, :1]


class Clips(nn.Module):
    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        x = x / 255 if rescale else x
        return x.mean((2, 3, 4)) if resize and return_features else x.new_zeros(len(x), 1)


class Depth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)[..., ::2, ::2]


class Labels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2, ::2]


@pytest.fixture
def scripts(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, module in {
        "image": Frames(),
        "video": Clips(),
        "depth": Depth(),
        "segmentation": Labels(),
    }.items():
        found[name] = tmp_path / f"{name}.pt"
        torch.jit.script(module).save(str(found[name]))
    return found


def test_torchscript_gets_pixels_and_the_options_of_the_published_files(scripts: dict[str, Path]) -> None:
    clips = video(2)
    frames = clips[0].transpose(0, 1)
    assert torch.allclose(given.network(scripts["image"], "image", CPU)(frames), frames.float().mean((2, 3)))
    found = given.network(scripts["video"], "video", CPU)(clips)
    assert torch.allclose(found[:, 0], clips.float().mean((2, 3, 4)) / 255)
    assert given.network(scripts["depth"], "depth", CPU)(frames).shape == (4, 32, 48)
    labels = given.network(scripts["segmentation"], "segmentation", CPU)(frames)
    assert labels.shape == (4, 32, 48) and labels.max() <= 2
    with pytest.raises(DataError, match="not depth"):
        given.network(scripts["image"], "depth", CPU)(frames)
    with pytest.raises(DataError, match="not class scores"):
        given.network(scripts["image"], "segmentation", CPU)(frames)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (open, (str(self.mark), "w"))


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    mark, path = tmp_path / "opened", tmp_path / "inception.pth"
    path.write_bytes(pickle.dumps({"weights": Evil(mark)}))
    with pytest.raises(DataError, match="tensors only"):
        given.network(path, "image", CPU)
    torch.save({"weights": Evil(mark)}, path)
    with pytest.raises(DataError, match="tensors only"):
        given.network(path, "image", CPU)
    assert not mark.exists()


@pytest.mark.needs("torchmetrics")
def test_weights_that_are_not_inceptions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(DataError, match=r"cosmos-distill\[metrics\]|does not hold Inception's weights"):
        given.network(path, "image", CPU)


@pytest.mark.needs("transformers")
def test_what_cannot_be_loaded_is_named(
    folders: dict[str, Path], scripts: dict[str, Path], tmp_path: Path
) -> None:
    def refused(path: Path, kind: given.Kind, why: str) -> None:
        with pytest.raises(DataError, match=why) as caught:
            given.network(path, kind, CPU)
        assert path.name in str(caught.value)

    refused(tmp_path / "none.pt", "image", "no such file")
    text = tmp_path / "text.pt"
    text.write_text("no network")
    refused(text, "depth", "neither a TorchScript file nor a folder")
    refused(text, "image", "tensors only")
    refused(folders["fid"], "depth", "no network for depth")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "image", r"config\.json")
    for key in ("auto_map", "use_pretrained_backbone"):
        odd = tmp_path / key
        odd.mkdir()
        config = json.loads((folders["fid"] / "config.json").read_text())
        (odd / "config.json").write_text(json.dumps(config | {key: {"AutoModel": "code.Model"}}))
        refused(odd, "image", f"{key}.*not loaded")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((folders["fid"] / "config.json").read_text())
    torch.save({}, pickled / "pytorch_model.bin")
    refused(pickled, "image", "no network for image")


@pytest.mark.needs("torchmetrics")
def test_fid_is_that_of_torchmetrics(scripts: dict[str, Path]) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, generated = video(20), (video(20, seed=3).float() * 0.6).byte()
    metrics = load(["fid"])
    sets = []
    for clips in (generated, real):
        readings = Readings(metrics)
        readings.add(View(clips, networks={"fid": scripts["image"]}), torch.arange(len(clips)))
        sets.append(readings)
    found = document(metrics, {"student": sets[0]}, sets[1], sets[1])["metrics"]["student"]["fid"]

    network = given.network(scripts["image"], "image", CPU)

    class Network(nn.Module):
        num_features = 3

        def forward(self, x: Tensor) -> Tensor:
            return network(x)

    theirs = FrechetInceptionDistance(Network(), normalize=False, input_img_size=(3, 32, 48)).set_dtype(
        torch.float64
    )
    for clips, is_real in ((real, True), (generated, False)):
        theirs.update(clips.transpose(1, 2).flatten(0, 1), real=is_real)
    assert found == pytest.approx(float(theirs.compute()), rel=1e-4)
