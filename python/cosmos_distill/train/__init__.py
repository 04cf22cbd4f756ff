"""Training of one stage: the loop, its optimisers, its checkpoints and its log."""
