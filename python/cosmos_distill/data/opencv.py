"""OpenCV, which is an extra."""

from __future__ import annotations

from types import ModuleType

from cosmos_distill.data.errors import DataError


def opencv() -> ModuleType:
    """OpenCV, or a DataError that says how to get it."""
    try:
        import cv2
    except ImportError as error:
        raise DataError("edge and vis controls need OpenCV: pip install 'cosmos-distill[video]'") from error
    return cv2
