"""Pictures for a person: grids of clips, and the curves of every loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from cosmos_distill.storage import disk_errors, replacing
from cosmos_distill.train.log import read

Frame = Literal["first", "middle", "last"]
GRID_CLIPS = 4
"""Clips side by side in a picture, at most."""
_GRID_PIXELS = 2**27
"""Of all of them together, frames counted, where they are drawn and decoded again and again: one clip at
121 x 704 x 1280."""
_GAP, _SEAM, _MARGIN, _HEADER, _LABEL = 14, 2, 8, 20, 150
_MIN_SIDE = 96
_PANEL_WIDTH, _PANEL_HEIGHT, _PANELS_PER_ROW = 300, 170, 3
_MAX_POINTS = 600


def grid_clips(frames: int, height: int, width: int) -> int:
    """How many clips of that size a grid shows that is drawn again and again."""
    return max(1, min(GRID_CLIPS, _GRID_PIXELS // (frames * height * width)))


def shown(video: Tensor) -> Tensor:
    """The frames that a grid shows of clips [B, 3, F, H, W]: first, middle and last, [B, 3, 3, H, W] on the
    CPU."""
    frames = video.shape[2]
    return video[:, :, [0, frames // 2, frames - 1]].cpu()


def grid(
    rows: Mapping[str, Tensor],
    path: Path,
    *,
    columns: Sequence[Frame] = ("first", "middle", "last"),
) -> Path:
    """Draw clips as a PNG: a labelled row per entry, samples side by side, some frames of each.

    Small frames are enlarged by repeating pixels, so that a 32x32 clip can be looked at without a blur that
    is not in it.

    Args:
        rows: label -> uint8 video [B, 3, F, H, W]; all of the same shape.
        path: file to write, replaced at once or not at all.
        columns: which frames of every sample.

    Raises:
        ValueError: if there is nothing to draw or a row is not such a video.
        DiskError: if the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    videos = list(rows.values())
    if not videos or any(v.ndim != 5 or v.shape[1] != 3 or v.shape != videos[0].shape for v in videos):
        shapes = {label: tuple(video.shape) for label, video in rows.items()}
        raise ValueError(f"a grid needs rows of one shape [B, 3, F, H, W], not {shapes}")
    samples, _, frames, height, width = videos[0].shape
    index = {"first": 0, "middle": frames // 2, "last": frames - 1}
    factor = max(1, math.ceil(_MIN_SIDE / min(height, width)))
    size = (width * factor, height * factor)
    cell = (size[0] + _SEAM, size[1] + _SEAM)
    sample_width = len(columns) * cell[0] + _GAP
    image = Image.new(
        "RGB",
        (_LABEL + samples * sample_width - _GAP + _MARGIN, _HEADER + len(rows) * cell[1] + _MARGIN),
        "white",
    )
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=13)
    for sample in range(samples):
        for column, frame in enumerate(columns):
            x = _LABEL + sample * sample_width + column * cell[0]
            draw.text((x + 3, 3), frame, fill="black", font=font)
            for row, video in enumerate(videos):
                pixels = video[sample, :, index[frame]].permute(1, 2, 0).contiguous().cpu().numpy()
                tile = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
                image.paste(tile, (x, _HEADER + row * cell[1]))
    for row, label in enumerate(rows):
        y = _HEADER + row * cell[1] + size[1] // 2 - 7
        draw.text((_MARGIN, y), label, fill="black", font=font)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            image.save(temporary, format="PNG")
    return path


def curves(logs: Mapping[str, Path]) -> str:
    """Small multiples of every loss of every stage, as an ``<svg>`` to be put into a page.

    Thin line: as logged. Thick line: its running mean. The value axis is logarithmic where a loss spans
    more than a factor 20. A tick below the axis marks a step that was skipped.

    Args:
        logs: stage -> its log.jsonl.
    """
    panels = []
    for stage, path in logs.items():
        records = read(path)
        keys = sorted({key for record in records for key in record if key.startswith("loss/")})
        skipped = [record["step"] for record in records if "nonfinite" in record]
        for key in keys:
            # A mean that is not finite is a word in the log, and has no place on an axis.
            points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float)]
            if points:
                panels.append(_panel(f"{stage}: {key}", points, skipped))
    rows = math.ceil(len(panels) / _PANELS_PER_ROW)
    placed = []
    for i, panel in enumerate(panels):
        x, y = i % _PANELS_PER_ROW * _PANEL_WIDTH, i // _PANELS_PER_ROW * _PANEL_HEIGHT
        placed.append(f'<g transform="translate({x},{y})">{panel}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_PANELS_PER_ROW * _PANEL_WIDTH} '
        f'{max(1, rows) * _PANEL_HEIGHT}" font-family="sans-serif" font-size="11" fill="currentColor">'
        f"{''.join(placed)}</svg>"
    )


def _panel(title: str, points: Sequence[tuple[int, float]], skipped: Sequence[int]) -> str:
    """One curve with its extremes on the axes and its last value beside the title."""
    left, right, top, bottom = 52, _PANEL_WIDTH - 12, 24, _PANEL_HEIGHT - 24
    steps = [step for step, _ in points]
    values = [value for _, value in points]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > 20

    def scale(value: float) -> float:
        return math.log10(value) if logarithmic else value

    span_x = max(1, steps[-1] - steps[0])
    span_y = (scale(high) - scale(low)) or 1.0

    def x(step: float) -> float:
        return left + (step - steps[0]) / span_x * (right - left)

    def y(value: float) -> float:
        return bottom - (scale(value) - scale(low)) / span_y * (bottom - top)

    def line(series: Sequence[float], width: float, opacity: float) -> str:
        stride = max(1, len(series) // _MAX_POINTS)
        shown = list(zip(steps, series, strict=True))[::stride]
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in shown)
        return (
            f'<polyline points="{path}" fill="none" stroke="#2a78c8" stroke-width="{width}" '
            f'opacity="{opacity}"/>'
        )

    def text(at: tuple[float, float], content: Any, anchor: str, weight: str = "normal") -> str:
        return (
            f'<text x="{at[0]}" y="{at[1]}" text-anchor="{anchor}" font-weight="{weight}">'
            f"{escape(str(content))}</text>"
        )

    parts = [
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="currentColor" opacity="0.4"/>',
        line(values, 0.8, 0.35),
        line(_running_mean(values), 1.8, 1.0),
        text((left, 14), title + (" (log)" if logarithmic else ""), "start", "bold"),
        text((right, 14), f"{values[-1]:.4g}", "end"),
        text((left - 4, top + 8), f"{high:.3g}", "end"),
        text((left - 4, bottom), f"{low:.3g}", "end"),
        text((left, bottom + 14), steps[0], "start"),
        text((right, bottom + 14), f"step {steps[-1]}", "end"),
    ]
    parts += [
        f'<path d="M{x(step):.1f} {bottom}v6" stroke="#c83232"/>'
        for step in skipped
        if steps[0] <= step <= steps[-1]
    ]
    return "".join(parts)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of a tenth of the curve."""
    reach = len(values) // 20
    sums = [0.0, *accumulate(values)]
    edges = ((max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values)))
    return [(sums[end] - sums[start]) / (end - start) for start, end in edges]
