"""Errors that every part of the package may raise. Torch-free."""

from __future__ import annotations


class UserError(Exception):
    """Base of what the user can mend; the message says how. Exit status 2."""


class Refusal(UserError):
    """The run asked for cannot be started; the message says what to do about it."""
