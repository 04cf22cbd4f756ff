"""Ranks of a launch: how they are laid out, agree and end together. Torch-free at import."""
