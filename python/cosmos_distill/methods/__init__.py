"""Training methods, one file each: its Config, which a recipe imports, and its losses.

Importing a method imports no torch, so that recipes and ``--help`` stay quick.
"""

from cosmos_distill.methods.base import Method, Noise, build

__all__ = ["Method", "Noise", "build"]
