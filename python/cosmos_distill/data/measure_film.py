"""Find the film's shots and the quartiles of its descriptions, and write both as Python:

``python -m cosmos_distill.data.measure_film > python/cosmos_distill/data/film_table.py``
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from cosmos_distill.data import film_frames
from cosmos_distill.data.clips import find_cuts
from cosmos_distill.data.film_split import split_film

HEIGHT, WIDTH, FRAMES, STRIDE = 48, 80, 9, 2
SHORTEST = 20
"""Frames below which a shot is left out: a flash of one frame is counted as a shot of its own."""
BLACK = 16
"""Mean grey level up to which a frame belongs to a fade from or to black and is cut off."""
CREDITS = range(11_727, 13_942)
"""From the iris that closes on the last scene to the end of the titles."""
WINDOWS = 2048


def shots(frames: np.ndarray) -> list[tuple[int, int]]:
    """(first frame, frame after the last) of every shot of uint8 [F, H, W, 3]."""
    lit = frames.reshape(len(frames), -1).mean(1) > BLACK
    edges = np.flatnonzero(np.diff(lit)) + 1  # fades are cuts, too
    bounds = sorted({0, *find_cuts(np.asarray(frames[:, ::2, ::2])), *edges.tolist(), len(frames)})
    return [
        (begin, end)
        for begin, end in pairwise(bounds)
        if lit[begin] and end - begin >= SHORTEST and not (begin in CREDITS and end - 1 in CREDITS)
    ]


def quartiles(frames: np.ndarray, found: list[tuple[int, int]]) -> np.ndarray:
    """[3, 3]: three bounds of motion, of detail and of light over training windows from the picture's
    middle."""
    from cosmos_distill.data import describe

    span = (FRAMES - 1) * STRIDE + 1
    left = (frames.shape[2] - WIDTH) // 2
    stretches = [s for s in split_film(found, span) if s.split == "train"]
    starts = np.concatenate([np.arange(s.start, s.stop - span + 1) for s in stretches])
    chosen = starts[np.linspace(0, len(starts) - 1, WINDOWS).astype(int)]
    windows = (frames[s : s + span : STRIDE, :, left : left + WIDTH] for s in chosen)
    return np.quantile([describe.measures(window) for window in windows], (0.25, 0.5, 0.75), axis=0).T


def main() -> None:
    """Print the table."""
    frames = film_frames.frames((HEIGHT, film_frames.close(HEIGHT)))[HEIGHT]
    found = shots(frames)
    bounds = [tuple(round(float(v), 2) for v in row) for row in quartiles(frames, found)]
    print(
        '"""Shots of Big Buck Bunny and quartiles of its clips\' measures.\n\n'
        "Written by ``python -m cosmos_distill.data.measure_film``.\n"
        '"""\n\nfrom __future__ import annotations\n'
    )
    print("SHOTS: tuple[tuple[int, int], ...] = (")
    print("".join(f"    ({begin}, {end}),\n" for begin, end in found) + ")")
    print(
        '"""First frame and the frame after the last, between cuts, without the titles and black frames."""\n'
    )
    print("# Bounds between the quarters of the training windows, in grey levels; see describe.measures.")
    for name, row in zip(("MOTION", "DETAIL", "LIGHT"), bounds, strict=True):
        print(f"{name} = {row}")


if __name__ == "__main__":
    main()
