"""From a recipe to networks, clips and noise levels: the one place where they are built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cosmos_distill import models, ops
from cosmos_distill.config import Recipe, Trainer
from cosmos_distill.config.numbers import Drawn, Exported
from cosmos_distill.diffusion import Schedule, build_schedule
from cosmos_distill.errors import Refusal
from cosmos_distill.models.common import eight_bits
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.ops import registry
from cosmos_distill.parallel import data
from cosmos_distill.run.checks import projects_text, teacher_files
from cosmos_distill.run.sizes import denoiser

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.clips import FilmSplit
    from cosmos_distill.data.sources import Source
    from cosmos_distill.models.common.network import ControlledDiT
    from cosmos_distill.models.common.projection import TextProjection

DTYPES: dict[Exported, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,
}
"""What a network computes in that is stored so."""


def device() -> torch.device:
    """This rank's accelerator if there is one, by its index: a device without one means another in a thread,
    whose current device is its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def in_threads() -> Callable[[], None]:
    """What a thread has to call first to have this one's accelerator: its own would be number 0."""
    if not torch.cuda.is_available():
        return lambda: None
    index = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(index)


def sizes(recipe: Recipe) -> DiTConfig:
    """Sizes of the recipe's network, which denoises."""
    found = denoiser(recipe)
    assert found is not None
    return found


def schedule(recipe: Recipe) -> Schedule:
    """The recipe's noise coordinate."""
    return build_schedule(recipe.schedule)


def open_clips(recipe: Recipe, split: FilmSplit, group: int | None = None) -> Source:
    """The recipe's clips: those to train on, or those held out.

    With ``group``, the samples of a global batch, each such batch is of one of the recipe's buckets.
    """
    from cosmos_distill.data.sources import open_source

    config = denoiser(recipe)  # a tokenizer reads no text
    return open_source(
        recipe.data,
        recipe.control,
        recipe.seed,
        split=split,
        text_channels=config.text_channels if config else 1,
        text_tokens=config.text_tokens if config else None,
        schedule=recipe.schedule,
        device=device(),
        projection=text_projection(recipe),
        group=group,
        branches=config.controls if config else 1,
    )


def text_projection(recipe: Recipe) -> TextProjection | None:
    """The teacher's frozen text projection, behind which embeddings of captions are stored; None where there
    is none, or the teacher is yet to be trained."""
    if not projects_text(recipe):
        return None
    from cosmos_distill.models.common.projection import TextProjection

    return TextProjection(teacher_files(recipe))


def load(config: DiTConfig, files: tuple[Path, ...], dtype: torch.dtype = torch.float32) -> ControlledDiT:
    """A frozen network with the weights of ``files``, on the accelerator.

    Raises:
        Refusal: the file is damaged or belongs to another network.
    """
    from cosmos_distill.models.common import weights

    refuse_others(config, files)  # before memory is taken for a network that may be another
    network = models.build(config, device=device(), dtype=dtype, seed=None)
    refuse_missing_backends(next(network.parameters()))
    try:
        weights.load_into(network, files)
    except (ValueError, OSError) as error:
        raise Refusal(str(error)) from error
    return network.eval().requires_grad_(False)


def refuse_others(config: DiTConfig, files: tuple[Path, ...]) -> None:
    """Compare the headers of ``files`` with the network: names, shapes and types of all tensors. Collective
    in a pipeline.

    Raises:
        Refusal: a file is missing or damaged, or belongs to another network.
    """
    from cosmos_distill.models.common import weights

    try:
        weights.check(models.build(config, device="meta", seed=None), files)
    except (ValueError, OSError) as error:
        raise Refusal(str(error)) from error


def refuse_missing_backends(example: Tensor) -> None:
    """Look whether the backends that the environment insists on serve tensors like ``example``.

    Raises:
        Refusal: one does not, or is unknown.
    """
    try:
        backends(example)
    except (ValueError, registry.BackendUnavailable) as error:
        raise Refusal(f"{registry.VARIABLE}: {error}") from error


def backends(example: Tensor) -> list[str]:
    """Those that a network's operators pick for tensors like ``example``, each once.

    Raises:
        ValueError: the environment names one that there is not.
        BackendUnavailable: the one that it insists on does not serve them.
    """
    operators = ("adaln_modulate", "qk_norm_rope", "attention")
    for operator in operators:
        getattr(ops, operator)  # its folder declares its backends when it is imported
    return list(dict.fromkeys(registry.pick(operator, None, example) for operator in operators))


def load_to_draw(
    recipe: Recipe, files: tuple[Path, ...], batch: int, precision: Drawn = "fp32", fp8: bool = False
) -> ControlledDiT:
    """A network that draws ``batch`` clips at once: a pipeline has a micro-batch for each of its ranks. Of
    data "fsdp", this rank's share of one, whose calls are collective (:func:`collective`). ``fp8``: with
    weights as eight bits hold them."""
    network = load(sizes(recipe), files, torch.bfloat16 if precision == "bf16" else torch.float32)
    network.micro_batch = -(-batch // recipe.parallel.pipeline)
    if fp8:
        eight_bits.round_weights(network)
    data.shard(network, recipe.parallel)
    return network


def collective(recipe: Recipe) -> bool:
    """Whether ranks with other samples take part in every call of a network, and so have to make as many."""
    return recipe.parallel.data == "fsdp"


@contextmanager
def computing(precision: Drawn) -> Iterator[None]:
    """Inside, products of fp32 are rounded to TF32 where that is asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def load_teacher(recipe: Recipe, dtype: torch.dtype = torch.float32) -> ControlledDiT:
    """The pre-trained teacher."""
    return load(sizes(recipe), teacher_files(recipe), dtype)


def by_role(
    recipe: Recipe,
    student: tuple[Path, ...] | None,
    trainer: Trainer,
    teacher: tuple[Path, ...] | None = None,
) -> Callable[[str], ControlledDiT]:
    """networks(role) for :func:`cosmos_distill.methods.build`; of data "fsdp", this rank's share of them.

    Args:
        student: Weights that the student starts from; None initialises it afresh from the recipe's seed.
        trainer: Of the stage: its precision, and what it asks of a network's own passes, how much of them is
            computed again in the backward one and how many samples go through a pipeline together.
        teacher: Weights of the other roles; None takes the recipe's pre-trained teacher.
    """
    dtype = DTYPES[trainer.precision]

    def networks(role: str) -> ControlledDiT:
        if role != "student":
            network = load(sizes(recipe), teacher, dtype) if teacher else load_teacher(recipe, dtype)
        elif student is None:
            network = models.build(sizes(recipe), device=device(), dtype=dtype, seed=recipe.seed)
        else:
            network = load(sizes(recipe), student, dtype)
        network.activation_checkpointing = trainer.activation_checkpointing
        network.micro_batch = trainer.micro_batch
        data.shard(network, recipe.parallel)
        return network

    return networks
