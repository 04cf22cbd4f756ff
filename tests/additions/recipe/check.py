"""The recipe is a command with options of its own: it is resolved and checked, without work."""

from pathlib import Path

from cosmos_distill import cli

FILE = str(Path(__file__).with_name("two_steps.py"))
assert cli.parse([FILE, "--steps", "10", "--seed", "3"]).recipe.seed == 3
assert cli.main([FILE, "--steps", "10", "--dry-run"]) == 0
