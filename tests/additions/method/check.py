"""The method trains from a recipe outside of the package, with its own field as an option."""

import json
from pathlib import Path

from cosmos_distill import cli

FILE = str(Path(__file__).with_name("robust.py"))
SMALL = ["--stages.generate.pairs", "8", "--stages.generate.steps", "2", "--stages.generate.batch", "8"]
assert cli.main([FILE, "--steps", "2", "--stages.robust.method.delta", "0.1", *SMALL, "--out", "run"]) == 0
assert Path("run/export/student.safetensors").is_file()
assert json.loads(Path("run/robust/manifest.json").read_text())["configuration"]["stage"]["method"] == {
    **{"type": "Robust", "delta": 0.1},
    **json.loads(Path("run/recipe.json").read_text())["recipe"]["stages"]["robust"]["method"],
}
