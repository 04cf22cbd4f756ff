"""Metrics, one per file, their uncertainty, the latency clock, and the report.

Videos are uint8 ``[B, 3, F, H, W]``. A metric first turns clips into numbers per clip, so that a set of
any size is scored batch by batch, and then a set of clips into one value, so that it can be resampled.
"""
