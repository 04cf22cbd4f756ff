"""Key points of people, in colours: by a network that the user gives, or from files.

Drawn as the published pipeline draws them: OpenPose's skeleton, joints as dots and limbs as lines over them,
black where there is nobody; what has a score below :data:`LEAST` is left out. Feet are not drawn.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np

from cosmos_distill.controls import Control, Map, Modelled, Settings
from cosmos_distill.data.opencv import opencv
from cosmos_distill.vision import poses

Colour = tuple[int, int, int]
LEAST = 0.6
RADIUS, WIDTH = 2, 4
"""Of a joint and of a limb, in pixels."""
# Of COCO's 17 points and the neck between the shoulders, in OpenPose's order.
_ORDER = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_JOINTS: tuple[Colour, ...] = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
    (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
    (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
_LIMBS: tuple[tuple[int, int, Colour], ...] = (
    (1, 2, (255, 0, 0)), (1, 5, (255, 85, 0)), (2, 3, (255, 170, 0)), (3, 4, (255, 255, 0)),
    (5, 6, (170, 255, 0)), (6, 7, (85, 255, 0)), (1, 8, (0, 255, 0)), (8, 9, (0, 255, 85)),
    (9, 10, (0, 255, 170)), (1, 11, (0, 255, 225)), (11, 12, (0, 170, 255)), (12, 13, (0, 85, 255)),
    (1, 0, (0, 0, 255)), (0, 14, (255, 0, 170)), (14, 16, (170, 0, 255)), (0, 15, (255, 0, 255)),
    (15, 17, (255, 0, 170)),
)  # fmt: skip
_FACE, _HANDS = range(23, 91), (91, 112)
"""Points of the face, and the roots of both hands, which have five fingers of four points; of
COCO-WholeBody."""
_FACE_COLOUR, _HAND_COLOUR = (255, 255, 255), (0, 0, 255)


def _finger(link: int, hand: int) -> Colour:
    """Colour of one of the twenty links of a hand: once around the hues. The published table has white in one
    place of the second hand."""
    if (hand, link) == (1, 10):
        return 255, 255, 255
    red, green, blue = colorsys.hsv_to_rgb(link / 20, 1.0, 1.0)
    return int(255 * red + 1e-6), int(255 * green + 1e-6), int(255 * blue + 1e-6)


def drawn(people: poses.People, height: int, width: int) -> np.ndarray:
    """One frame, RGB uint8 [H, W, 3], of people as :mod:`~cosmos_distill.vision.poses` finds them."""
    image = np.zeros((height, width, 3), np.uint8)
    for person in people:
        dots: list[tuple[np.ndarray, Colour]] = []
        lines: list[tuple[np.ndarray, np.ndarray, Colour]] = []
        neck = person[[5, 6]].mean(0)
        neck[2] = person[[5, 6], 2].min()
        body = np.vstack([person[:17], neck])[list(_ORDER)]
        dots += zip(body, _JOINTS, strict=True)
        lines += [(body[a], body[b], colour) for a, b, colour in _LIMBS]
        if len(person) == poses.WHOLE_BODY:
            dots += [(person[i], _FACE_COLOUR) for i in _FACE]
            for hand, root in enumerate(_HANDS):
                points = person[root : root + 21]
                dots += [(point, _HAND_COLOUR) for point in points]
                for link in range(20):
                    begin = points[0 if link % 4 == 0 else link]
                    lines.append((begin, points[link + 1], _finger(link, hand)))
        _draw(image, dots, lines)
    return image


def _draw(
    image: np.ndarray,
    dots: list[tuple[np.ndarray, Colour]],
    lines: list[tuple[np.ndarray, np.ndarray, Colour]],
) -> None:
    cv2 = opencv()

    def at(point: np.ndarray) -> tuple[int, int]:
        return int(point[0]), int(point[1])

    for point, colour in dots:
        if point[2] >= LEAST:
            cv2.circle(image, at(point), RADIUS, colour, -1)
    for begin, end, colour in lines:
        if min(begin[2], end[2]) >= LEAST:
            cv2.line(image, at(begin), at(end), colour, thickness=WIDTH)


def _load(folder: Path) -> Map:
    find = poses.load(folder)

    def keypoint(frames: np.ndarray, settings: Settings) -> np.ndarray:
        return np.stack([drawn(people, *frames.shape[1:3]) for people in find(frames)])

    return keypoint


CONTROL = Control(modelled=Modelled(wants=poses.WHAT, check=poses.check, load=_load), nearest=True)
