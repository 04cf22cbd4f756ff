"""What the clips of a folder are told: embeddings from their files, or of their captions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cosmos_distill.data.captions import negative_prompt
from cosmos_distill.data.embeddings import Embeddings, Made
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.text import load_embedding
from cosmos_distill.files import printable

if TYPE_CHECKING:
    import torch

    from cosmos_distill.config import Data
    from cosmos_distill.data.embeddings import Projection
    from cosmos_distill.data.survey import Sample, Survey

log = logging.getLogger(__name__)
_SHOWN = 10


class Prompts:
    """The prompts of a folder's clips, and that of the unconditional branch.

    What has to be encoded is encoded when this is made, of all clips, whichever split they are in.

    Args:
        shape: (tokens, channels) of the embeddings that the network takes.
        projection: Its first layer, where it has a frozen one: captions then become what is behind it, and
            so do embeddings from files.
        device: Where they are encoded.
        mixed: Other folders are read beside this one, which may have captions where it has none: then all
            are projected.

    Attributes:
        shape: (tokens, channels) of what :meth:`of` gives.
        negative: The unconditional branch's, fp32.

    Raises:
        DataError: the encoder cannot be used, or is of another width.
    """

    def __init__(
        self,
        data: Data,
        survey: Survey,
        shape: tuple[int, int],
        projection: Projection | None,
        device: torch.device | str,
        mixed: bool = False,
    ) -> None:
        self._wide = shape
        samples = survey.samples.values()
        told = negative_prompt(data.negative_prompt)
        captions = [sample.caption.text for sample in samples if sample.caption is not None]
        wanted = [*captions, *([told] if isinstance(told, str) else [])]
        self._embeddings: Embeddings | None = None
        self._made: dict[str, Made] = {}
        # Without a caption nothing is projected: files are what they were.
        projection = projection if captions or mixed else None
        if data.text_encoder is not None and (wanted or projection is not None):
            self._embeddings = Embeddings(data.text_encoder, shape[0], projection)
            if (found := self._embeddings.encoder_channels) != shape[1]:
                raise DataError(
                    f"the text encoder {data.text_encoder} gives embeddings of {found:,} channels, and the "
                    f"network takes {shape[1]:,}"
                )
            self._made = self._embeddings.make(wanted, device)
        self.shape = shape if self._embeddings is None else (shape[0], self._embeddings.channels)
        self.negative = self._negative(told)
        self._cut = {
            sample.name: made.said
            for sample in samples
            if sample.caption is not None and (made := self._made[sample.caption.text]).said > shape[0]
        }
        for name, said in list(self._cut.items())[:_SHOWN]:
            log.warning(
                "clip %s: of the %d tokens of its caption the %d that the encoder takes are used",
                printable(name), said, shape[0],
            )  # fmt: skip
        if (more := len(self._cut) - _SHOWN) > 0:
            log.warning("and so are those of %d more clips", more)

    def of(self, sample: Sample) -> np.ndarray:
        """A clip's embedding, fp32 [tokens, channels]. Raises DataError when it cannot be read any more."""
        if sample.text is not None:
            return self._narrow(load_embedding(sample.text, *self._wide))
        assert self._embeddings is not None and sample.caption is not None
        return self._embeddings.read(sample.caption.text)

    def _narrow(self, wide: np.ndarray) -> np.ndarray:
        if self._embeddings is None or self._embeddings.projection is None:
            return wide
        import torch

        behind = self._embeddings.projection(torch.from_numpy(wide))
        # As it would have been stored.
        narrow: np.ndarray = behind.to(torch.bfloat16).float().numpy()
        return narrow

    def _negative(self, told: Path | str | None) -> np.ndarray:
        if isinstance(told, str) and self._embeddings is not None:
            return self._embeddings.read(told)
        wide = np.zeros(self._wide, np.float32) if told is None else load_embedding(Path(told), *self._wide)
        return self._narrow(wide)

    def description(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Where the prompts of these clips are from, for manifests."""
        places = Counter(
            sample.caption.place.partition(",")[0].partition("/")[0]
            for sample in samples
            if sample.caption is not None
        )
        names = {sample.name for sample in samples}
        return {
            "embeddings": sum(sample.text is not None for sample in samples),
            "captions": dict(sorted(places.items())),
            "cut": {name: said for name, said in self._cut.items() if name in names},
            "encoder": None if self._embeddings is None else self._embeddings.description(),
        }
