"""A family for tests/additions: the common network, without a control, under EDM."""
