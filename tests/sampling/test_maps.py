"""Maps of the weights of controls, from files to the tokens of a clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from cosmos_distill.data.control_mix import ControlMix
from cosmos_distill.errors import Refusal
from cosmos_distill.sampling import maps

GRID = (3, 2, 2)
"""Tokens of five frames of 8 x 8, of which the first latent frame is one."""


def weights(mix: ControlMix, files: dict[str, Path], shown: np.ndarray | None = None) -> torch.Tensor:
    def pictures(option: str, path: Path) -> list[np.ndarray]:
        assert shown is not None
        return list(shown)

    return maps.weights(files, mix, pictures, maps.Window(5, 1, GRID, 0, 5))


def saved(path: Path, values: np.ndarray) -> Path:
    if path.suffix == ".pt":
        torch.save(torch.from_numpy(values), path)
    elif path.suffix == ".npz":
        np.savez(path, control_weight=values)
    else:
        save_file({"control_weight": values}, path)
    return path


def test_a_still_image_is_a_map_of_all_frames() -> None:
    shown = np.zeros((1, 8, 8, 3), np.uint8)
    shown[:, :4, :4] = 255  # one of four tokens
    shown[:, 4:, 4:] = 51
    found = weights(ControlMix.read("edge:0.5"), {"edge": Path("map.png")}, shown)
    assert found.shape == (1, *GRID)
    torch.testing.assert_close(found[0], torch.tensor([[0.5, 0.0], [0.0, 0.1]]).expand(3, 2, 2))


def test_frames_go_to_the_latent_frame_that_they_are_in(tmp_path: Path) -> None:
    values = np.array([1.0, 0.2, 0.4, 0.6, 1.0], np.float32)[:, None, None] * np.ones((5, 3, 5), np.float32)
    for suffix in (".npz", ".safetensors", ".pt"):
        file = saved(tmp_path / f"map{suffix}", values)
        found = weights(ControlMix.read("edge"), {"edge": file})
        torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([1.0, 0.3, 0.8]))


def test_maps_of_several_controls_add_up_to_one_at_most(tmp_path: Path) -> None:
    values = np.zeros((8, 8), np.float32)
    values[:4] = 3.0
    found = weights(
        ControlMix.read("edge:0.5,vis:0.5,depth:0", 3), {"edge": saved(tmp_path / "e.npz", values)}
    )
    assert found.shape == (1, 3, *GRID)
    torch.testing.assert_close(found[0, :, 0, 0, 0], torch.tensor([0.75, 0.25, 0.0]))
    torch.testing.assert_close(found[0, :, 0, 1, 0], torch.tensor([0.0, 0.5, 0.0]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            np.ones((4, 8, 8), np.float32),
            r"is \[4, 8, 8\], and a map is \[H, W\] or, of 5 frames, \[5, H, W\]",
        ),
        (np.ones(8, np.float32), r"is \[1, 8\]|is \[8\]"),
        (-np.ones((8, 8), np.float32), "has weights below 0"),
        (np.full((8, 8), np.nan, np.float32), "NaN or infinity"),
        (np.ones((0, 8), np.float32), r"is \[1, 0, 8\]"),
    ],
    ids=["frames", "axes", "negative", "nan", "nothing"],
)
def test_what_is_no_map_is_refused(values: np.ndarray, said: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=f"--control-maps edge: .*({said})"):
        weights(ControlMix.read("edge"), {"edge": saved(tmp_path / "map.npz", values)})


def test_a_file_of_torch_holds_the_map_alone(tmp_path: Path) -> None:
    for content, said in (
        ({"map": torch.ones(4, 4)}, "holds no tensor"),
        (torch.full((4, 4), torch.nan), "NaN"),
    ):
        torch.save(content, tmp_path / "map.pt")
        with pytest.raises(Refusal, match=f"--control-maps edge: .*{said}"):
            weights(ControlMix.read("edge"), {"edge": tmp_path / "map.pt"})


def test_maps_and_controls_go_together() -> None:
    mix = ControlMix.read("edge:1,vis:0", 2)
    maps.refuse({}, mix, own=False)
    maps.refuse({"edge": Path("m.png")}, mix, own=True)
    with pytest.raises(Refusal, match="--control-maps vis: the controls of these clips are edge"):
        maps.refuse({"vis": Path("m.png")}, mix, own=True)
    with pytest.raises(Refusal, match="--control-maps are of one clip: give its control beside them"):
        maps.refuse({"edge": Path("m.png")}, mix, own=False)
