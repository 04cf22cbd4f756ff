"""Clips, controls, text and teacher pairs, as an endless stream of encoded samples.

A source is stateless: sample ``n`` of the stream depends on the seed and ``n`` only, so the position
in the data is the number of samples drawn, and a resumed run sees exactly what it would have seen.
"""
