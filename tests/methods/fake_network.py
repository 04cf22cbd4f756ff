"""A network with the call signature of ControlledDiT, and batches for it: tiny, and every call recorded."""

from types import SimpleNamespace

import torch
from torch import nn

from cosmos_distill.data.batch import Batch
from cosmos_distill.diffusion import TrigFlowSchedule
from cosmos_distill.models.common.given import augmented_frames, clean_frames

WIDTH, BLOCKS, CHANNELS, TEXT = 16, 2, 3, 5


class FakeNetwork(nn.Module):
    """Pointwise blocks; every input moves the output, and every call is recorded."""

    def __init__(self, seed=0, clean_condition_times=True):
        super().__init__()
        self.config = SimpleNamespace(width=WIDTH, blocks=BLOCKS, clean_condition_times=clean_condition_times)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.enter = nn.Linear(2 * CHANNELS + 2, WIDTH)
            self.text = nn.Linear(TEXT + 2, WIDTH)
            self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
            self.leave = nn.Linear(WIDTH, CHANNELS)
        self.calls = []

    def give_frames(self, schedule, mask, clean, times):
        """As the family does whose schedule it is."""
        style = clean_frames if isinstance(schedule, TrigFlowSchedule) else augmented_frames
        return style(self.config, schedule, mask, clean, times)

    def forward(
        self, x, c_noise, text, *, hint=None, condition_mask=None, padding_mask=None, fps=None,
        control_weight=1.0, features=(), features_only=False,
    ):  # fmt: skip
        self.calls.append(
            SimpleNamespace(
                x=x.detach(), c_noise=c_noise, text=text, hint=hint, condition_mask=condition_mask,
                padding_mask=padding_mask, fps=fps, features=features, features_only=features_only,
                graph=torch.is_grad_enabled(), grad=self.leave.weight.requires_grad,
            )
        )  # fmt: skip
        dtype = self.enter.weight.dtype
        hint = torch.zeros_like(x) if hint is None else hint
        mask = torch.zeros_like(x[:, :1]) if condition_mask is None else condition_mask
        padding = torch.zeros_like(x[:, :1, 0]) if padding_mask is None else padding_mask
        padding = padding[:, :, None].expand_as(mask)
        h = self.enter(torch.cat([x, hint, mask, padding], 1).movedim(1, -1))
        level = c_noise.reshape(len(x), -1, 1).to(dtype)  # of the sample, or of each frame
        fps = torch.full_like(level, 24.0) if fps is None else fps.to(dtype)[:, None, None].expand_as(level)
        told = torch.cat([text.mean(1)[:, None].expand(-1, level.shape[1], -1), level, fps / 24], 2)
        h = h + self.text(told)[:, :, None, None]
        taken = {}
        for index, block in enumerate(self.blocks):
            h = h + torch.tanh(block(h))
            if index in features:
                taken[index] = h
            if features_only and index == max(features):
                return None, taken
        out = self.leave(h).movedim(-1, 1)
        return (out, taken) if features else out


def make_batch(count=2, first=0, shape=(CHANNELS, 3, 4, 4), dtype=torch.float32):
    """Samples first .. first+count-1 of a stream, each the same in whatever batch it comes."""

    def draw(salt, *size):
        rows = [
            torch.randn(size, generator=torch.Generator().manual_seed(1000 * salt + n), dtype=torch.float64)
            for n in range(first, first + count)
        ]
        return torch.stack(rows).to(dtype)

    height, width = shape[-2:]
    return Batch.of(
        first,
        {
            "latents": 0.5 * draw(1, *shape),
            "hint": draw(2, *shape),
            "text": draw(3, 4, TEXT),
            "negative_text": draw(4, 4, TEXT),
            "fps": torch.full((count,), 24.0, dtype=dtype),
            "padding_mask": torch.zeros(count, 1, height, width, dtype=dtype),
            "noise": draw(5, *shape),
        },
    )
