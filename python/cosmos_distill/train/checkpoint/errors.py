"""What is wrong with a checkpoint."""

from cosmos_distill.errors import UserError


class CheckpointError(UserError, RuntimeError):
    """No checkpoint could be read, or what is asked for is not in it, or the ranks hold no whole one."""
