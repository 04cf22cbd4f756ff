"""Four kills at random moments; ``python -m tests.robustness --kills N`` makes as many as one likes."""

import json
from pathlib import Path

import pytest

from tests.robustness import kills
from tests.run.commands import QUICK


@pytest.mark.parametrize("recipe, fixture", [("transfer1", "finished"), ("predict25", "finished_predict25")])
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(
    recipe: str,
    fixture: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kills, "PROGRAM", (QUICK,))
    whole: Path = request.getfixturevalue(fixture)
    seconds = json.loads((whole / "report.json").read_text())["wall_seconds"]
    found = list(kills.trials(recipe, 2, tmp_path, kills.results(whole), seconds, seed=len(recipe)))
    assert sum(len(one.kills) for one in found) == 2
    assert all(one.equal for one in found), found


def test_another_run_is_noticed(finished: Path, tmp_path: Path) -> None:
    """What counts as a result: one bit of a weight or of an optimiser's state, a log line, a picture."""
    import shutil

    whole = kills.results(finished)
    assert len(whole) > 30 and "left behind" not in whole.values()
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shard = out / "dmd2/checkpoints/step_000000020/optimizer_student/shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    log = out / "kd" / "log.jsonl"
    log.write_text(log.read_text().replace('"step": 5', '"step": 6'))
    (out / "kd" / ".student.safetensors.tmp").write_text("half")
    changed = {name for name, digest in kills.results(out).items() if whole.get(name) != digest}
    assert changed == {str(path.relative_to(out)) for path in (shard, log)} | {"kd/.student.safetensors.tmp"}
