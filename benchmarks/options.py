"""What the benchmarks' command lines share. Imports nothing that takes time."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def new_file(text: str) -> Path:
    """A file that can be written when the work is done.

    Raises:
        ArgumentTypeError: its folder is missing or may not be written, or it is a folder itself.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}: make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written: name another file")
    return path
