"""Fit frames of any size into the training size: aspect ratio kept, the rest filled by reflection."""

from __future__ import annotations

import numpy as np

from cosmos_distill.data.opencv import opencv


class Fit:
    """Scale height x width until the limiting side fits, then reflect the edges to fill the target.

    The picture is centred (the odd pixel goes to the bottom and the right). ``nearest`` keeps colours
    unmixed, for label maps. ``padding`` is fp32 [target height, target width], 1 where there is no picture.
    An image of another size than height x width is scaled to the same place: the control of a clip.
    """

    def __init__(
        self, height: int, width: int, target_height: int, target_width: int, nearest: bool = False
    ) -> None:
        scale = min(target_height / height, target_width / width)
        self._size = (
            min(target_width, max(1, round(width * scale))),
            min(target_height, max(1, round(height * scale))),
        )
        self._cv2, self._nearest = opencv(), nearest
        free_height, free_width = target_height - self._size[1], target_width - self._size[0]
        self._top, self._left = free_height // 2, free_width // 2
        self._bottom, self._right = free_height - self._top, free_width - self._left
        self.padding = np.ones((target_height, target_width), np.float32)
        self.padding[self._top : target_height - self._bottom, self._left : target_width - self._right] = 0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """RGB uint8 [H, W, 3] -> [target height, target width, 3]."""
        cv2 = self._cv2
        shrinks = self._size[0] < image.shape[1] or self._size[1] < image.shape[0]
        smooth = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        small = cv2.resize(image, self._size, interpolation=cv2.INTER_NEAREST if self._nearest else smooth)
        borders = (self._top, self._bottom, self._left, self._right)
        if not any(borders):
            return small
        return cv2.copyMakeBorder(small, *borders, cv2.BORDER_REFLECT_101)
