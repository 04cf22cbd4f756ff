"""Any network behind the denoise seam: what an adapter says of it, and features of its blocks by hooks.

    class MyAdapter(Adapter):
        def predict(self, x, c_noise, *, text, **others):
            return self.network(x, timestep=c_noise, prompt=text)

    teacher = MyAdapter(network, TrigFlow(), blocks=("layers.0", "layers.1"), width=1024)

The package's own networks need none, and :mod:`cosmos_distill.integrations.diffusers` has those of diffusers.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor, nn

from cosmos_distill.arguments import checked
from cosmos_distill.config import EDM, TrigFlow
from cosmos_distill.diffusion import Given, Schedule
from cosmos_distill.errors import Refusal
from cosmos_distill.ranges import Range

Channels = Annotated[int, Range(0, 2**20)]
Side = Annotated[int, Range(1, 2**16)]
Recompute = Literal["none", "full", "selective"]


@dataclass(frozen=True)
class Facts:
    """What a method asks of a network (see :class:`cosmos_distill.methods.denoiser.Network`)."""

    blocks: int
    """Blocks whose outputs a discriminator may read; 0: none are named."""
    width: int
    """Channels of these outputs."""
    clean_condition_times: bool
    """Of :func:`~cosmos_distill.models.common.given.clean_frames`: the network is told a noise level of
    almost zero on frames that it is given."""


GiveFrames = Callable[[Any, Schedule, Tensor, Tensor, Tensor], Given]
"""How given frames are shown, as families declare it: :attr:`cosmos_distill.families.Family.give_frames`."""


_SIZES = re.compile(r"shapes? |sizes? |dimension|broadcast|channels", re.IGNORECASE)
"""In what torch says of tensors that do not go together."""


class _Enough(Exception):
    """The last feature that is wanted is there."""


class Adapter(nn.Module, ABC):
    """A network of someone else's, as student, teacher or fake score.

    Its weights and their names stay as they are; ``network`` is the module itself.

    Args:
        network: whatever maps a noisy latent to what ``schedule`` says it predicts: EDM's network output F
            (Karras et al. 2022, arXiv 2206.00364), or, of a rectified flow, the velocity eps - x0.
        schedule: the noise coordinate that the network was trained in.
        blocks: dotted names of the modules in ``network`` whose outputs DMD2's discriminator may read, in the
            order in which they are called. A method's ``feature_blocks`` are numbers in this list. They are
            read by forward hooks, so that nothing in the network changes; with ``gan_weight`` 0 none is
            needed. Under FSDP they are also the units that are sharded.
        width: channels of these outputs.
        patch: latent frames, rows and columns of a token.
        given_frames: how leading frames of the clip are shown to the network that are given: a function of
            :mod:`cosmos_distill.models.common.given` or one like them; None: it cannot be given any.
        clean_condition_times: see :class:`Facts`.
        frozen: dotted names of modules in ``network`` that no role trains.

    Raises:
        ValueError: an argument is of another type, ``blocks`` or ``frozen`` name a module that is not there,
            or blocks have no width.
    """

    @checked(
        network="give the module itself",
        blocks="give a tuple of names of the network's modules",
        frozen="give a tuple of names of the network's modules",
    )
    def __init__(
        self,
        network: nn.Module,
        schedule: EDM | TrigFlow,
        *,
        blocks: Sequence[str] = (),
        width: Channels = 0,
        patch: tuple[Side, Side, Side] = (1, 2, 2),
        given_frames: GiveFrames | None = None,
        clean_condition_times: bool = False,
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.blocks, self.frozen = tuple(blocks), tuple(frozen)
        self.patch = patch
        self.given_frames = given_frames
        self.config = Facts(len(self.blocks), width, clean_condition_times)
        known = dict(network.named_modules())
        if missing := [name for name in (*self.blocks, *self.frozen) if name not in known]:
            raise ValueError(
                f"{type(network).__name__} has no module {missing[0]!r}: take names of its named_modules()"
            )
        if self.blocks and width < 1:
            raise ValueError("blocks need a width, the channels of their outputs")

    @abstractmethod
    def predict(self, x: Tensor, c_noise: Tensor, *, text: Tensor, **conditioning: Any) -> Tensor:
        """Call the network.

        Args:
            x: noisy latent in the scale that the network expects, [B, C, T, H, W], in :attr:`dtype`.
            c_noise: noise level as the schedule encodes it, fp32: [B], or [B, T] where given frames have
                their own. Of EDM ln(sigma) / 4, of a rectified flow its time within 0..1.
            text: prompt embedding, [B, L, D].
            conditioning: what else there is, by name, each absent or None where there is none: ``hint``
                [B, C', T, H, W], ``fps`` [B], ``padding_mask`` [B, 1, H, W], ``condition_mask``
                [B, 1, T, H, W], 1 on given frames, and what the data carry besides.

        Returns:
            The output, [B, C, T, H, W].
        """

    def give_frames(self, schedule: Schedule, mask: Tensor, clean: Tensor, times: Tensor) -> Given:
        """See :meth:`cosmos_distill.methods.denoiser.Network.give_frames`.

        Raises:
            ValueError: the network cannot be given any.
        """
        if self.given_frames is None:
            raise ValueError(f"{type(self).__name__}: this network cannot be given frames")
        return self.given_frames(self.config, schedule, mask, clean, times)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the network takes its inputs: that of most of its weights."""
        counts: dict[torch.dtype, int] = {}
        for parameter in self.network.parameters():
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
        return max(counts, key=lambda dtype: counts[dtype])

    @property
    def activation_checkpointing(self) -> Recompute:
        """What the backward pass computes again. An adapter whose network can do that overrides both."""
        return "none"

    @activation_checkpointing.setter
    def activation_checkpointing(self, what: Recompute) -> None:
        if what != "none":
            raise ValueError(
                f"activation_checkpointing {what!r}: {type(self).__name__} cannot switch it on; do that in "
                "the network itself, and leave the trainer's at 'none'"
            )

    def feature(self, x: Tensor) -> tuple[int, ...]:
        """Shape of a block's feature for a latent like ``x``: [B, T', H', W', D]."""
        b, _, *size = x.shape
        return (b, *(n // p for n, p in zip(size, self.patch, strict=True)), self.config.width)

    def trunks(self) -> Mapping[nn.Module, Sequence[nn.Module]]:
        """What FSDP shards: the blocks one by one, and the rest, which is gathered around a call of the
        adapter. The network in it does not return the features, and would not know that their gradients need
        its weights."""
        return {self: [self.network.get_submodule(name) for name in self.blocks]}

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let gradients reach every weight but those of ``frozen``."""
        super().requires_grad_(requires_grad)
        for name in self.frozen:
            self.network.get_submodule(name).requires_grad_(False)
        return self

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        text: Tensor,
        *,
        features: Sequence[int] = (),
        features_only: bool = False,
        **conditioning: Any,
    ) -> Tensor | tuple[Tensor | None, dict[int, Tensor]]:
        """The output, and with ``features`` those of these blocks, [B, T', H', W', D] each; see
        :class:`cosmos_distill.methods.denoiser.Network`.

        Raises:
            Refusal: the network cannot take tensors of these sizes.
            ValueError: the network returned something of another shape than the latent's, or a block
                something that is no grid of tokens.
        """
        told = {"c_noise": c_noise, "text": text, **conditioning}
        if len(x) == 1 or self.takes_together(x, told):
            output, found = self._pass(x, told, features, features_only)
        else:
            tensors = {name: value for name, value in told.items() if value is not None}
            passes = [
                self._pass(x[i], {n: v[i] for n, v in tensors.items()}, features, features_only)
                for i in (slice(i, i + 1) for i in range(len(x)))
            ]
            outputs = [one for one, _ in passes if one is not None]
            output = torch.cat(outputs) if outputs else None
            found = {n: torch.cat([taken[n] for _, taken in passes]) for n in features}
        if features:
            return output, found
        assert output is not None
        return output

    def takes_together(self, x: Tensor, told: Mapping[str, Any]) -> bool:
        """Whether the samples of a batch go through the network in one call; if not, each goes alone. Ranks
        that share an FSDP network have to call it equally often, whatever their samples are."""
        return True

    def _pass(
        self, x: Tensor, told: Mapping[str, Any], features: Sequence[int], features_only: bool
    ) -> tuple[Tensor | None, dict[int, Tensor]]:
        """One call of the network."""
        found: dict[int, Tensor] = {}
        last = max(features) if features_only else None
        with ExitStack() as hooks:
            for number in features:
                block = self.network.get_submodule(self.blocks[number])
                handle = block.register_forward_hook(self._keep(found, number, x, number == last))
                hooks.callback(handle.remove)
            try:
                output = self.predict(x, **told)
            except _Enough:
                return None, found
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError) or _SIZES.search(str(error)) is None:
                    raise
                sizes = {"latent": x, **told}
                shapes = [f"{name} {list(v.shape)}" for name, v in sizes.items() if isinstance(v, Tensor)]
                raise Refusal(
                    f"{type(self.network).__name__} cannot take what it is told, {', '.join(shapes)}: "
                    f"{str(error).splitlines()[0]}. Give it data of the sizes that it was trained with, the "
                    "width of its text for instance, or call it with other arguments in predict()"
                ) from error
        if output.shape != x.shape:
            raise ValueError(
                f"{type(self).__name__}.predict returned {list(output.shape)} for a latent of "
                f"{list(x.shape)}: both have to be the same"
            )
        if missing := [self.blocks[number] for number in features if number not in found]:
            raise ValueError(f"{missing[0]!r} was not called: the discriminator cannot read it")
        return (None if features_only else output), found

    def _keep(self, found: dict[int, Tensor], number: int, x: Tensor, stop: bool) -> Any:
        shape = self.feature(x)

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tokens: Tensor = output[0] if isinstance(output, tuple) else output
            if tokens.numel() != torch.Size(shape).numel():
                raise ValueError(
                    f"{self.blocks[number]} returned {list(tokens.shape)}, which is no grid of "
                    f"{list(shape)}: give the adapter the width and the patch of its tokens"
                )
            found[number] = tokens.reshape(shape)
            if stop:
                raise _Enough

        return hook
