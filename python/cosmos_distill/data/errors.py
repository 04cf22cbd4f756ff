"""The error of this package that a user can act on."""

from __future__ import annotations

from cosmos_distill.errors import UserError


class DataError(UserError, RuntimeError):
    """Clips, controls, text or pairs cannot be used; the message says what to do next."""


class NothingLeft(DataError):
    """No window of a clip, or of any clip, can be decoded."""
