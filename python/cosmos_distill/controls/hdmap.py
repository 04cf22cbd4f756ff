"""A map of lanes, signs and boxes around what moves, projected onto the camera of a car: from files.

The published networks that read it are Cosmos-Transfer1-7B-Sample-AV's.
"""

from cosmos_distill.controls import Control

CONTROL = Control()
