"""The only folder that imports ``megatron.core``: process groups and tensor-parallel layers.

A model file contains no process group; it asks this folder for a column- or row-parallel linear and
gets one that fits the layout chosen once, by :func:`groups.initialize`.
"""
