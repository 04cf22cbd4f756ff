"""Exports in the formats of others, held against what reads them: the key filters of the official inference,
written down as facts, and diffusers' stock pipelines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from cosmos_distill import text
from cosmos_distill.config import Export, FewStep, Parallel, Recipe, TrigFlow
from cosmos_distill.errors import Refusal
from cosmos_distill.families import preset
from cosmos_distill.models import build
from cosmos_distill.models.common import weights
from cosmos_distill.models.predict25.config import Predict25Config
from cosmos_distill.models.transfer25.config import Transfer25Config
from cosmos_distill.run.checks import check
from cosmos_distill.run.manifest import ExportedFile, Student
from cosmos_distill.run.networks import open_clips, schedule
from cosmos_distill.run.runner import Run, _lost
from cosmos_distill.sampling.exported import beside, files, read
from cosmos_distill.sampling.options import SampleOptions
from cosmos_distill.sampling.sample import draw
from cosmos_distill.sampling.samplers import few_steps, noise_of
from cosmos_distill.stages.published import pipeline
from cosmos_distill.storage import DiskError
from cosmos_distill.train.guard import StopFlag
from tests import lanes
from tests.fields.specimens import PREDICT25, TRANSFER1, Stages
from tests.real_formats import text_encoders
from tests.robustness.disk import full_disk

lanes.require("diffusers")

SIZES: dict[str, Any] = {
    "width": 48, "blocks": 3, "heads": 2, "head_dim": 24, "adaln_rank": 8, "text_dim": 64,
    "text_projection": 96, "text_tokens": 8, "max_frames": 8, "max_height": 16, "max_width": 16,
}  # fmt: skip
NETWORKS = {
    "predict2.5": Predict25Config(**SIZES, clean_condition_times=True),
    "transfer2.5": Transfer25Config(**SIZES, clean_condition_times=True, control_every=2),
}


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKLWan

    path = tmp_path_factory.mktemp("wan")
    torch.manual_seed(0)
    AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1, dim_mult=[1, 1, 1, 1]).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=list(NETWORKS))
def trained(request: pytest.FixtureRequest, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A student of four steps, exported as a pipeline."""
    network = NETWORKS[request.param]
    place = tmp_path_factory.mktemp(request.param)
    weights.save(build(network, seed=3), place / "teacher.safetensors")
    method = dataclasses.replace(
        PREDICT25.stages["dmd2"].method, sampler=FewStep(4), condition_frames=(0.5, 0.5)
    )  # type: ignore[attr-defined]
    stage = dataclasses.replace(PREDICT25.stages["dmd2"], method=method)
    recipe = dataclasses.replace(
        PREDICT25,
        network=network,
        control="edge" if network.controls else None,
        teacher=place / "teacher.safetensors",
        data=dataclasses.replace(
            PREDICT25.data,
            tokenizer="wan2.1",
            tokenizer_path=vae,
            max_condition_frames=1,
        ),
        stages={"dmd2": stage, "export": Export(student_from="dmd2", names="diffusers")},
    )
    return Stages(recipe, place / "run")


def exported(stages: Stages) -> Path:
    output = stages.outputs["export"]
    assert isinstance(output, ExportedFile)
    return stages.out / Path(output.student.path).parent


class Checker:
    """A dummy: the pipeline insists on one, and its own is another package with weights of its own."""

    def to(self, device: torch.device) -> Checker:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        return frames


def opened(folder: Path, **given: Any) -> Any:
    """As someone does who has diffusers alone, but for torchvision's resizing, which cannot be installed
    beside every build of torch."""
    import diffusers

    import cosmos_distill.ops.integrations.diffusers  # noqa: F401  # resizes without torchvision

    return diffusers.DiffusionPipeline.from_pretrained(folder, safety_checker=Checker(), **given)


def drawn(stages: Stages, pipe: Any, noise: Tensor) -> Tensor:
    """Latents of the stock pipeline under the conditions of a held-out clip."""
    batch = open_clips(stages.recipe, "eval").batch(0, 1)
    told: dict[str, Any] = {"num_frames": 5}
    if stages.recipe.control is not None:
        _, control = open_clips(stages.recipe, "eval").pixels(0, 1)
        assert control is not None
        told = {"num_frames": 5, "num_frames_per_chunk": 5, "controls": control[0].float() / 127.5 - 1}
        told["controls"] = list(control[0].permute(1, 2, 3, 0).numpy() / 255.0)
    pipe.set_progress_bar_config(disable=True)
    found: Tensor = pipe(
        prompt_embeds=batch.conditioning.text, height=32, width=32, num_inference_steps=4, guidance_scale=0.0,
        latents=noise, output_type="latent", return_dict=False, **told,
    )[0]  # fmt: skip
    return found


def ours(stages: Stages, noise: Tensor) -> Tensor:
    student = stages.outputs["dmd2"]
    assert isinstance(student, Student)
    network = build(stages.recipe.network, seed=None)
    weights.load_into(network, stages.out / student.weights.path)
    batch = open_clips(stages.recipe, "eval").batch(0, 1)
    with torch.no_grad():
        return few_steps(network, schedule(stages.recipe), batch, noise, FewStep(4))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


def test_the_stock_pipeline_draws_our_clip_with_our_sampler(trained: Stages) -> None:
    from cosmos_distill.integrations.diffusers import FewStepScheduler

    folder = exported(trained)
    pipe = opened(folder, text_encoder=None, tokenizer=None)
    noise = noise_of(0, "test", open_clips(trained.recipe, "eval").batch(0, 1))
    wanted = ours(trained, noise)
    said = (folder / "README.md").read_text()
    stock = relative(drawn(trained, pipe, noise), wanted)
    pipe.scheduler = FewStepScheduler.from_pretrained(folder, subfolder="few_step")
    own = relative(drawn(trained, pipe, noise), wanted)
    print(f"\n{type(pipe).__name__}: own sampler {own:.1e}, stock scheduler {stock:.1e}")
    assert own < 1e-4 < stock < 0.2
    assert "FewStepScheduler.from_pretrained" in said and "% (root mean square" in said


def written(stages: Stages, folder: Path, **changes: Any) -> Path:
    """The pipeline once more, of data that are changed in something."""
    student, stage = stages.outputs["dmd2"], stages.recipe.stages["export"]
    assert isinstance(student, Student) and isinstance(stage, Export)
    recipe = dataclasses.replace(stages.recipe, data=dataclasses.replace(stages.recipe.data, **changes))
    run = Run(recipe, stages.out, stages.outputs, StopFlag(), Console(quiet=True), {})
    tensors = weights.load(stages.out / student.weights.path)[0]
    return pipeline(tensors, run, stage, folder, json.loads(beside(exported(stages)).read_text())).parent


def test_the_pipeline_has_the_text_encoder_of_the_recipe(trained: Stages, tmp_path: Path) -> None:
    encoder = tmp_path / "reason1"
    text_encoders.reason1(encoder)
    folder = written(trained, tmp_path, text_encoder=encoder)
    prompts = ["a red car drives at night"]
    found, _ = opened(folder).encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=24
    )
    torch.testing.assert_close(found, text.build(encoder, tokens=24)(prompts), rtol=1e-4, atol=1e-4)
    assert "text_encoder=ENCODER" not in (folder / "README.md").read_text()


def test_a_full_disk_leaves_nothing_of_a_pipeline(trained: Stages, tmp_path: Path) -> None:
    with full_disk(), pytest.raises(DiskError, match="free some space"):
        written(trained, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_lost_a_file_is_made_again(trained: Stages, tmp_path: Path) -> None:
    made = trained.outputs["export"]
    folder = exported(trained)
    assert isinstance(made, ExportedFile) and _lost(trained.out, "export", made) == ""
    part = next((folder / "transformer").glob("*.safetensors"))
    part.rename(tmp_path / "part")
    try:
        assert _lost(trained.out, "export", made) == f"{part.name} is missing"
    finally:
        (tmp_path / "part").rename(part)


def test_the_files_have_the_permissions_of_the_users_files(trained: Stages) -> None:
    folder = exported(trained)
    mode = (folder / "model_index.json").stat().st_mode
    made = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_nlink == 1]
    assert len(made) > 5 and {p.stat().st_mode for p in made} == {mode}


def test_we_draw_from_the_pipeline_folder_and_see_what_was_changed(
    trained: Stages, vae: Path, tmp_path: Path
) -> None:
    folder = exported(trained)
    found = read(folder)
    assert found.network == trained.recipe.network and found.sampler == FewStep(4)
    made = build(found.network, seed=None)
    weights.load_into(made, files(folder, found))
    student = trained.outputs["dmd2"]
    assert isinstance(student, Student)
    wanted = weights.load(trained.out / student.weights.path)[0]
    assert all(torch.equal(value, wanted[name]) for name, value in made.state_dict().items())
    options = SampleOptions(clips=1, batch=1, out=tmp_path / "clips", tokenizer=vae)
    assert len(draw(folder, options)) == 1
    part = next((folder / "transformer").glob("*.safetensors"))
    before = part.read_bytes()
    try:
        part.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(Refusal, match="damaged or was changed"):
            files(folder, found)
    finally:
        part.write_bytes(before)


def test_nothing_that_the_description_names_is_opened(trained: Stages, tmp_path: Path) -> None:
    folder = exported(trained)
    found = read(folder)
    lured = dataclasses.replace(found, files_sha256={"../../../../etc/passwd": "0" * 64})
    with pytest.raises(Refusal, match="damaged or was changed"):
        files(folder, lured)


def official_filter(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What the distilled pipeline of cosmos-transfer1 (``DistilledControl2WorldGenerationPipeline``) takes of
    a file: keys under two prefixes, loaded with ``strict=False``, so that what is missing goes unsaid."""
    prefixes = {"base": "net.base_model.net.", "control": "net.net_ctrl."}
    return {
        part: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        for part, prefix in prefixes.items()
    }


@pytest.mark.parametrize("family", ["transfer1", "predict2.5", "transfer2.5"])
def test_the_official_inference_finds_every_tensor(family: str, tmp_path: Path) -> None:
    base = TRANSFER1 if family == "transfer1" else PREDICT25
    stages = {"dmd2": base.stages["dmd2"], "export": Export(student_from="dmd2", names="official")}
    if family == "transfer1":
        stages["dmd2"] = dataclasses.replace(stages["dmd2"], start_from=None)
    if family == "transfer2.5":
        network = preset("transfer2.5-smoke")
        weights.save(build(network, seed=3), tmp_path / "teacher.safetensors")
        base = dataclasses.replace(
            base, network=network, control="edge", teacher=tmp_path / "teacher.safetensors"
        )
    done = Stages(dataclasses.replace(base, stages=stages), tmp_path / "run")
    output, student = done.outputs["export"], done.outputs["dmd2"]
    assert isinstance(output, ExportedFile) and isinstance(student, Student)
    path = done.out / output.student.path
    assert path.name == "student.pt"
    state = torch.load(path, weights_only=True)  # as it is, without "model" around it
    whole = weights.load(done.out / student.weights.path)[0]
    back = weights.load(path)[0]
    assert back.keys() == whole.keys() and all(torch.equal(back[k], whole[k]) for k in whole)
    if family == "transfer1":
        parts = official_filter(state)
        assert sum(map(len, parts.values())) == len(state) >= len(whole)
        trunk = [name for name in whole if name.startswith("base.")]
        assert len(parts["base"]) >= len(trunk) and "x_embedder.proj.1.weight" in parts["base"]
        assert {"x_embedder2.proj.1.weight", "zero_blocks.block0.weight"} <= parts["control"].keys()
    else:
        # cosmos-predict2.5's loader takes keys that begin with net., and net. out of them; that of
        # cosmos-transfer2.5 takes them as they are, into a model whose network is called net, with
        # strict=False, and would take net_ema. in their place if there were any.
        assert all(name.startswith("net.") and name.count("net.") == 1 for name in state)
        blocks = {name.split(".")[2] for name in state if name.startswith("net.control_blocks.")}
        embedder = "net.control_embedder.proj.1.weight"
        expected = {"0", "1"} if family == "transfer2.5" else set()  # control_every 1, of two blocks
        assert blocks == expected and (embedder in state) == (family == "transfer2.5")
        projections = [f"net.control_blocks.{i}.after_proj.weight" for i in sorted(blocks)]
        assert all(name in state for name in projections)
    found = read(path)
    assert found.network == done.recipe.network and files(path, found) == (path,)
    assert len(draw(path, SampleOptions(clips=1, batch=1, out=tmp_path / "clips"))) == 1
    (path.parent / "student.json").unlink()
    with pytest.raises(Refusal, match=r"student\.json"):
        read(path)


@pytest.mark.parametrize(
    "recipe, why",
    [
        (TRANSFER1, "diffusers has no pipeline for Cosmos-Transfer1"),
        (PREDICT25, "timestep_scale 30"),
        (dataclasses.replace(PREDICT25, network=NETWORKS["predict2.5"]), "latents are of haar"),
        (dataclasses.replace(PREDICT25, parallel=Parallel(tensor=2)), "one rank draws a clip"),
    ],
    ids=["family", "times", "tokenizer", "layout"],
)
def test_a_network_without_a_pipeline_is_refused_before_any_work(
    recipe: Recipe, why: str, tmp_path: Path
) -> None:
    stages = {**recipe.stages, "export": dataclasses.replace(recipe.stages["export"], names="diffusers")}
    with pytest.raises(Refusal, match=why) as refused:
        check(dataclasses.replace(recipe, stages=stages), tmp_path / "run")
    assert "--stages.export.names diffusers" in str(refused.value)


def test_fewer_steps_are_the_first_of_the_grid() -> None:
    from cosmos_distill.diffusion import TrigFlowSchedule
    from cosmos_distill.integrations.diffusers import FewStepScheduler

    levels = TrigFlowSchedule(TrigFlow())
    times = levels.to_tau(torch.tensor(levels.student_times(4))).tolist()
    ours = FewStepScheduler(times)
    ours.set_timesteps(2)
    assert ours.sigmas.tolist() == [*torch.tensor(times[:2]).tolist(), 0.0]
    for steps in (0, 5):
        with pytest.raises(ValueError, match="was trained for 4"):
            ours.set_timesteps(steps)
    for wrong in ([], [0.5], [1.0, 1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="must decrease from 1"):
            FewStepScheduler(wrong)


def test_fresh_noise_is_drawn_from_the_generator() -> None:
    from cosmos_distill.integrations.diffusers import FewStepScheduler

    x = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def second(fresh: bool, seed: int) -> Tensor:
        scheduler = FewStepScheduler([1.0, 0.5], fresh)
        return scheduler.step(x, 1000.0, x, generator=torch.Generator().manual_seed(seed)).prev_sample

    assert torch.equal(second(False, 1), second(False, 2))
    assert torch.equal(second(True, 1), second(True, 1)) and not torch.equal(second(True, 1), second(True, 2))
    # x0 is 0 there: the state at time .5 is half the noise.
    assert torch.allclose(second(False, 1), x / 2)


def test_the_index_names_stock_classes_only(trained: Stages) -> None:
    index = json.loads((exported(trained) / "model_index.json").read_text())
    libraries = {value[0] for value in index.values() if isinstance(value, list)}
    assert libraries <= {"diffusers", "transformers", None}
