"""Depth, near to far: by a network that is not part of this package, hence from files."""

from cosmos_distill.controls import Control

CONTROL = Control()
