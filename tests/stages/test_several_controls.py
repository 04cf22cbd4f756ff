"""Runs with several controls: of one branch, trained with one of them in each sample, and of one branch each;
from a teacher over its pairs to a student that is drawn from with the weights that are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from cosmos_distill import cli
from cosmos_distill.data.write_video import write_mp4
from cosmos_distill.errors import Refusal
from cosmos_distill.sampling.conditions import Conditions
from cosmos_distill.sampling.exported import read
from cosmos_distill.sampling.options import SampleOptions
from tests.data.folders import write_clip, write_folder
from tests.real_formats import networks
from tests.run.commands import said_of
from tests.stages.control_recipe import RECIPE

KINDS = {
    "one": ("transfer1-smoke", [], "edge:1,vis:1"),
    "several": ("transfer2.5-smoke", ["--network.branches", "3"], "edge:0.5,vis:1,depth:0"),
}


@pytest.fixture(scope="module", params=KINDS)
def students(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "recipe.py").write_text(RECIPE)
    network, sizes, control = KINDS[request.param]
    command = [str(folder / "recipe.py"), "--network", network, "--control", control, *sizes]
    assert cli.main([*command, "--out", str(folder / "teacher")]) == 0
    teacher = folder / "teacher" / "export" / "student.safetensors"
    assert cli.main([*command, "--teacher", str(teacher), "--out", str(folder / "run")]) == 0
    return request.param, folder / "run"


def student(run: Path) -> Path:
    return run / "export" / "student.safetensors"


def test_pairs_report_and_export_say_what_was_used(students: tuple[str, Path]) -> None:
    kind, run = students
    control = KINDS[kind][2]
    assert read(student(run)).control == control
    shards = sorted((run / "generate" / "pairs").glob("*.safetensors"))
    names = []
    for shard in shards:
        with safe_open(shard, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            names += json.loads(file.metadata()["names"])
        channels = tensors["latents"].shape[1]
        if kind == "several":
            assert tensors["hint"].shape[1] == 3 * channels and not tensors["hint"][:, 2 * channels :].any()
            weights = torch.tensor([[1 / 3, 2 / 3, 0.0]]).expand(2, -1)
            assert torch.allclose(tensors["control_weight"], weights)
        else:
            assert tensors["hint"].shape[1] == channels and "control_weight" not in tensors
    assert all(name.endswith(("(edge)", "(vis)")) for name in names) == (kind == "one")
    manifest = json.loads((run / "train" / "manifest.json").read_text())
    assert manifest["configuration"]["control"] == control
    assert (run / "evaluate" / "grid.png").is_file()
    assert json.loads((run / "report.json").read_text())["metrics"]["student"]["canny_f1"] is not None


def test_it_is_drawn_from_with_the_controls_that_are_asked_for(
    students: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, run = students
    draw = ["sample", str(student(run)), "--clips", "2"]
    assert cli.main([*draw, "--out", str(tmp_path / "held")]) == 0
    clip = str(tmp_path / "held" / "clip-000.mp4")
    own = [*draw, "--prompt", "a", "--video", clip, "--out"]
    code = cli.main([*own, str(tmp_path / "all")])
    said = said_of(capsys)
    if kind == "one":
        assert code == 2 and "trained with edge, vis, one at a time: say which with --control" in said
        assert cli.main([*own, str(tmp_path / "all"), "--control", "edge:1,vis:1"]) == 2
        assert "one control branch, which takes one of edge, vis at a time" in said_of(capsys)
    else:
        assert code == 0
        assert cli.main([*own, str(tmp_path / "depth"), "--control", "edge:1,depth:1"]) == 2
        assert "depth cannot be computed from a video alone" in said_of(capsys)
        files = ["--control", "edge:1,depth:1", "--control-videos", "depth", clip]
        assert cli.main([*own, str(tmp_path / "depth"), *files]) == 0
    assert cli.main([*own, str(tmp_path / "vis"), "--control", "vis"]) == 0
    assert cli.main([*own, str(tmp_path / "weak"), "--control", "vis:0.25"]) == 0
    assert cli.main([*own, str(tmp_path / "none"), "--control", "seg"]) == 2
    assert "--control seg: this student was trained with edge, vis" in said_of(capsys)
    assert cli.main([*own, str(tmp_path / "none"), "--control", "vis:x"]) == 2
    assert "--control the weight of vis must be a number" in said_of(capsys)


def test_the_network_is_told_what_was_asked_for(students: tuple[str, Path], tmp_path: Path) -> None:
    kind, run = students
    exported = read(student(run))
    write_mp4(torch.randint(0, 256, (3, 9, 32, 32), dtype=torch.uint8), tmp_path / "own.mp4", 24.0)

    whose = (exported.network, exported.control, exported.data, exported.schedule)

    def conditions(**options: object) -> Conditions:
        given = {"prompt": "a", "video": tmp_path / "own.mp4", **options}
        chosen = SampleOptions(**given)  # type: ignore[arg-type]
        return Conditions(chosen, *whose)

    whole, pixels = conditions(control="vis").batch(0, 2)
    weak, _ = conditions(control="vis:0.25").batch(0, 2)
    assert whole.conditioning.hint is not None and weak.conditioning.hint is not None and pixels is not None
    assert torch.equal(whole.conditioning.hint, weak.conditioning.hint)
    channels = whole.latents.shape[1]
    if kind == "one":
        assert whole.conditioning.hint.shape[1] == channels
        assert whole.conditioning.extra["control_weight"].tolist() == [[1.0]] * 2
        held = Conditions(SampleOptions(), *whose).batch(0, 8)[0]  # those of its training are no strengths
        assert "control_weight" not in held.conditioning.extra
        assert {name.rsplit("(", 1)[1] for name in held.names} == {"edge)", "vis)"}
        assert weak.conditioning.extra["control_weight"].tolist() == [[0.25]] * 2
        return
    edge, vis, depth = whole.conditioning.hint.split(channels, dim=1)
    assert vis.any() and not edge.any() and not depth.any()
    assert whole.conditioning.extra["control_weight"].tolist() == [[0.0, 1.0, 0.0]] * 2
    assert weak.conditioning.extra["control_weight"].tolist() == [[0.0, 0.25, 0.0]] * 2
    both, pixels = conditions(control="vis:1,edge:3").batch(0, 1)
    assert both.conditioning.extra["control_weight"].tolist() == [[0.75, 0.25, 0.0]]  # in the student's order
    assert pixels is not None and pixels.shape[1] == 9 and not pixels[:, 6:].any()
    for wrong, said in (
        (
            {"control_videos": {"depth": tmp_path / "own.mp4"}},
            "--control-videos depth: the controls of these",
        ),
        ({"control": "depth"}, "depth cannot be computed from a video alone"),
        (
            {"control": "vis", "control_videos": {"vis": tmp_path / "own.mp4"}},
            "--video: --control-videos gives every control already",
        ),
        (
            {
                "control": "vis",
                "video": None,
                "control_video": tmp_path / "a.mp4",
                "control_videos": {"vis": tmp_path / "own.mp4"},
            },
            "--control-video and --control-videos exclude each other",
        ),
    ):
        with pytest.raises(Refusal, match=said):
            conditions(**wrong)  # type: ignore[arg-type]
    assert np.isfinite(both.conditioning.hint).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "network, control, said",
    [
        ("transfer1-smoke", "edge:0.5", "one control alone has no share to be weighed: write edge"),
        ("transfer2.5-2b-multi", "edge", "has 4 control branches: name a control for each, in their order"),
        ("transfer2.5-2b-multi", "vis:1,edge:1,depth:0,seg:0", "are edge, vis, depth, seg in this order"),
        ("transfer1-smoke", "depth:1,lidar:1", "these clips come without videos. the control 'depth'"),
        ("predict2.5-smoke", "edge:1,vis:1", "has no control branch"),
        ("transfer1-smoke", "depht", "no control is called 'depht': "),
    ],
)
def test_controls_that_do_not_suit_the_network_are_refused_by_name(
    network: str, control: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    command = [str(tmp_path / "recipe.py"), "--out", str(tmp_path / "run"), "--network", network]
    assert cli.main([*command, "--control", control]) == 2
    assert f"--control {control}" in (found := said_of(capsys)) and said in found


def test_two_controls_from_videos_are_trained_on_and_drawn_from(tmp_path: Path) -> None:
    """Those beside the clips of a folder, in training and of its held-out clips, and two of one's own."""
    clips, (recipe, run) = tmp_path / "clips", (tmp_path / "recipe.py", tmp_path / "run")
    write_folder(clips, 3, control="depth")
    for number, video in enumerate(sorted((clips / "videos").iterdir())):
        write_clip(clips / "seg" / video.name, 12, noise=number + 1)
        text = np.random.default_rng(number).standard_normal((6, 64), np.float32)
        save_file({"t5_text_embeddings": text}, clips / "t5_xxl" / f"{video.stem}.safetensors")
    recipe.write_text(RECIPE)
    command = [str(recipe), "--network", "transfer2.5-smoke", "--network.branches", "2"]
    command += ["--control", "depth:1,seg:0.5", "--data.source", "folder", "--data.root", str(clips)]
    short = ["--stages.train.trainer.max-steps", "1", "--stages.train.trainer.sample-every", "0"]
    assert cli.main([*command, "--out", str(run), *short]) == 0
    used = json.loads((run / "train" / "clips.json").read_text())["clips"]
    assert all({"control depth", "control seg"} <= set(one) for one in used.values())
    draw = ["sample", str(student(run)), "--clips", "1"]
    assert cli.main([*draw, "--data-root", str(clips), "--out", str(tmp_path / "held")]) == 0
    own = ["depth", str(clips / "depth" / "c00.mp4"), "seg", str(clips / "seg" / "c00.mp4")]
    assert cli.main([*draw, "--control-videos", *own, "--out", str(tmp_path / "own")]) == 0


def test_published_networks_of_one_control_each_draw_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One base and two branches make pairs; a student of both is drawn from, with weights by place."""
    teacher, (recipe, run) = tmp_path / "teacher", (tmp_path / "recipe.py", tmp_path / "run")
    networks.transfer1(teacher)
    branch = {k: v for k, v in networks.official(networks.TRANSFER1, seed=3).items() if k.startswith("net.")}
    networks.saved(teacher / "vis_control.pt", branch)
    recipe.write_text(RECIPE)
    command = [str(recipe), "--teacher", str(teacher), "--control", "edge:1,vis:0.5", "--out", str(run)]
    command += ["--stages.generate.pairs", "2", "--stages.train.trainer.max-steps", "1"]
    command += ["--stages.train.trainer.sample-every", "0"]
    assert cli.main([*command, "--only", "generate", "train", "export"]) == 2
    assert "or take all at once with --network.branches 2" in said_of(capsys)
    command += ["--network.branches", "2"]
    official = [*command, "--stages.export.names", "official", "--dry-run"]
    assert cli.main(official) == 2
    assert "--stages.export.names official: official files of Cosmos-Transfer1 have one" in said_of(capsys)
    assert cli.main([*command, "--only", "generate", "train", "export"]) == 0
    clip, still = tmp_path / "own.mp4", np.zeros((32, 32, 3), np.uint8)
    write_mp4(torch.randint(0, 256, (3, 9, 32, 32), dtype=torch.uint8), clip, 24.0)
    still[:, 16:] = 255
    Image.fromarray(still).save(tmp_path / "map.png")
    draw = [
        "sample",
        str(student(run)),
        "--clips",
        "1",
        "--video",
        str(clip),
        "--control",
        "edge:0.7,vis:0.3",
    ]
    draw += ["--prompt", "a"]
    maps = ["--control-maps", "edge", str(tmp_path / "map.png")]
    assert cli.main([*draw, "--out", str(tmp_path / "all")]) == 0
    assert cli.main([*draw, *maps, "--out", str(tmp_path / "mapped")]) == 0
    exported = read(student(run))
    options = SampleOptions(
        video=clip, prompt="a", control="edge:0.7,vis:0.3", control_maps={"edge": tmp_path / "map.png"}
    )
    conditions = Conditions(options, exported.network, exported.control, exported.data, exported.schedule)
    batch, _ = conditions.batch(0, 3)
    weights = batch.conditioning.extra["control_weight"]
    assert weights.shape[:2] == (3, 2) and torch.allclose(weights[:, 1], torch.tensor(0.3))
    half = weights.shape[-1] // 2
    assert not weights[:, 0, ..., :half].any() and torch.allclose(
        weights[:, 0, ..., half:], torch.tensor(0.7)
    )


def test_a_folder_of_networks_of_one_control_each_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    for name in ("base_model", "edge_control", "vis_control"):
        (tmp_path / f"{name}.pt").touch()
    command = [str(tmp_path / "recipe.py"), "--out", str(tmp_path / "run")]
    assert cli.main([*command, "--teacher", str(tmp_path)]) == 2
    assert "take a control each, and --control edge:1,vis:1 wants one that was trained" in said_of(capsys)
