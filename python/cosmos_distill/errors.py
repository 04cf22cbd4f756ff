"""Errors that every part of the package may raise. Torch-free."""

from __future__ import annotations


class Refusal(Exception):
    """The run asked for cannot be started; the message says what to do about it. Exit status 2."""
