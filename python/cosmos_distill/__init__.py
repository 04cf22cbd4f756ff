"""cosmos-distill: few-step students of video diffusion transformers.

Importing the package imports no torch, so that the command line answers at once; the parts that
compute (:mod:`~cosmos_distill.ops`, :mod:`~cosmos_distill.models`, ...) are imported when used.
"""

__version__ = "0.2.0"
