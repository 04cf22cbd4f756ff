"""Exports in the formats of others: what the official inference loads, and a pipeline folder of diffusers.

Neither has room for what ours says of itself, so that a file of the same content lies beside the one and in
the other. It lets ``cosmos-distill sample`` read them, and is looked at by nobody else.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_distill import text
from cosmos_distill.config import Export, FewStep, Train
from cosmos_distill.diffusion import TrigFlowSchedule
from cosmos_distill.files import sha256
from cosmos_distill.methods.denoiser import Denoiser
from cosmos_distill.models.common import weights
from cosmos_distill.run.checks import in_diffusers
from cosmos_distill.run.networks import DTYPES, device, load, open_clips, schedule, sizes
from cosmos_distill.run.runner import Run
from cosmos_distill.sampling.exported import beside
from cosmos_distill.sampling.samplers import few_steps, noise_of
from cosmos_distill.stages import card
from cosmos_distill.storage import disk_errors, publish, publish_json, replacing, sync_folder
from cosmos_distill.tokenizers import wan2_1
from cosmos_distill.tokenizers.common import vae


def official(tensors: Mapping[str, Tensor], folder: Path, said: Mapping[str, Any]) -> Path:
    """``student.pt``, a dictionary of tensors, which is what the official inference can read, and
    ``student.json``."""
    path = folder / "student.pt"
    # Opened here: of a file that torch opens, a full disk raises no system's error.
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(tensors), file)
    publish_json(beside(path), {**said, "files": {path.name: sha256(path)}})
    return path


def pipeline(
    tensors: Mapping[str, Tensor], run: Run, stage: Export, folder: Path, said: Mapping[str, Any]
) -> Path:
    """``student/``, a pipeline folder of diffusers. Returns its description, in which the checksums of all
    weights are. It appears whole or not at all."""
    from cosmos_distill.integrations import pipeline_folder

    recipe, final = run.recipe, folder / "student"
    source = recipe.stages[stage.student_from]
    assert isinstance(source, Train)
    target, levels = in_diffusers(recipe), schedule(recipe)
    assert isinstance(levels, TrigFlowSchedule)
    few = None if source.method.pretrains else source.method.sampler
    times = None if few is None else levels.to_tau(torch.tensor(levels.student_times(few.steps))).tolist()
    sampling = pipeline_folder.Sampling(levels.config.shift, times, few is not None and few.fresh_noise)
    temporary = folder / ".student.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    with disk_errors(final):
        try:
            temporary.mkdir(parents=True)
            components = weights.to_pipeline(tensors, recipe.network.family)
            encoder = None if recipe.data.text_encoder is None else text.place(recipe.data.text_encoder)
            places = None if encoder is None else (encoder, text.tokenizer_folder(encoder))
            vae_files = recipe.data.tokenizer_path
            assert vae_files is not None
            pipeline_folder.write(
                temporary, target, components, sampling, partial(_autoencoder, vae_files), places
            )
            parts = sorted(p for name in target.networks for p in (temporary / name).glob("*.safetensors"))
            files = {part.relative_to(temporary).as_posix(): sha256(part) for part in parts}
            publish_json(beside(temporary), {**said, "files": files})
            apart = None if few is None else stock_difference(run, stage, levels, few, sampling.stock())
            told = card.text(run, stage, said, target.pipeline, times, apart, encoder is not None)
            publish(temporary / "README.md", told)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(folder)
    return beside(final)


def _autoencoder(source: Path, folder: Path) -> None:
    from cosmos_distill.integrations import pipeline_folder

    if vae.is_one(source):
        pipeline_folder.copy(source, folder)
    else:
        pipeline_folder.save(wan2_1.for_diffusers(source), folder)


@torch.no_grad()
def stock_difference(run: Run, stage: Export, levels: TrigFlowSchedule, few: FewStep, stock: Any) -> float:
    """How far clips of diffusers' stock scheduler are from the student's own: root mean square of the
    difference over that of the latents, of one held-out clip's conditions and the same noise."""
    recipe = run.recipe
    network = load(sizes(recipe), (run.student(stage.student_from),), DTYPES[stage.precision])
    batch = open_clips(recipe, "eval").batch(0, 1).to(device())
    noise = noise_of(recipe.seed, "export", batch)
    wanted = few_steps(network, levels, batch, noise, few, seed=recipe.seed)
    denoise = Denoiser(network, levels).bind(batch.conditioning)
    stock.set_timesteps(few.steps, device=noise.device)
    state = noise
    for i, t in enumerate(stock.timesteps):
        tau = stock.sigmas[i].double()
        angle = levels.from_tau(tau)
        scale = levels.noising(angle)[1] / tau  # from rectified flow's state to TrigFlow's
        x0 = denoise(scale.to(state) * state, angle.expand(len(state)).to(state.device))
        state = stock.step((state - x0) / tau.to(state), t, state, return_dict=False)[0]
    return float((state - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
