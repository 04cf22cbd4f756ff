"""What is wrong with a checkpoint."""


class CheckpointError(RuntimeError):
    """No checkpoint could be read, or what is asked for is not in it, or the ranks hold no whole one."""
