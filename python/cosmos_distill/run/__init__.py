"""A recipe from start to end: checks, manifests, the stages in turn, the report. Torch-free at import."""
