"""Segmentation, a colour for every label: by a network that is not part of this package, hence from files."""

from cosmos_distill.controls import Control

CONTROL = Control(nearest=True)
