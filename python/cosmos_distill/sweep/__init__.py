"""Systematic small-scale experimentation: one recipe under many settings, compared on held-out clips."""
