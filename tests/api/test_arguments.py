"""Every argument of every function of the package: what is of another type, or out of range, is refused by
name, before any work."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cosmos_distill
from cosmos_distill import DMD2, EDM, Distilled, FewStep, Parallel, Refusal, Trainer
from tests.api.foreign import SHAPE, TEXT, Foreign, Network, adapter, samples

PLAIN = DMD2(gan_weight=0.0, condition_frames=(1.0,))
NO_NETWORK: list[Any] = [None, "student", 3, {}, [], torch.zeros(2), nn.Linear]
NO_NUMBER: list[Any] = ["a", None, 1.5, [], True]
NO_SEED = [*NO_NUMBER, -1, 2**64]
NO_COUNT = [*NO_NUMBER, 0, -1]
NO_SCHEDULE: list[Any] = ["edm", 3, {}, EDM]
NO_FOLDER: list[Any] = ["", None, 3, [], b"run"]
NO_DATA: list[Any] = [None, 3, {}, samples()[0]]
WRONG: dict[str, dict[str, list[Any]]] = {
    "distill": {
        "student": NO_NETWORK,
        "teacher": NO_NETWORK[1:],
        "method": [None, "dmd2", DMD2, {}, EDM()],
        "data": NO_DATA,
        "folder": NO_FOLDER,
        "trainer": ["a", 3, {}, {"max_steps": 3}, Trainer],
        "schedule": NO_SCHEDULE,
        "parallel": [2, "fsdp", {}, Parallel(tensor=2), Parallel(pipeline=3)],
        "seed": NO_SEED,
        "watch": ["a", 3, {}],
    },
    "sample": {
        "student": NO_NETWORK,
        "conditioning": [None, "text", [], {}, {"text": "a"}, torch.zeros(1, 3, TEXT)],
        "shape": ["abcd", 3, (2, 3, 4), (2, 3, 4, 0), (2, 3, 4, 4.0), None],
        "sampler": [0, "euler", 1.5, True, EDM()],
        "schedule": NO_SCHEDULE,
        "guidance": [3.0, "cfg", None, {}],
        "given_frames": [*NO_NUMBER, -1, 99],
        "seed": NO_SEED,
        "first": [*NO_NUMBER, -1],
        "batch": [bad for bad in NO_COUNT if bad is not None],
    },
    "pairs": {
        "teacher": NO_NETWORK,
        "data": NO_DATA,
        "count": [*NO_NUMBER, -1],
        "steps": NO_COUNT,
        "guidance": [3.0, "cfg", None, {}],
        "schedule": NO_SCHEDULE,
        "seed": NO_SEED,
        "batch": NO_COUNT,
    },
    "fit": {
        "method": [None, "dmd2", PLAIN],
        "source": [None, samples(), 3],
        "trainer": [None, {}, 3],
        "folder": [None, 3, b"run"],
        "seed": NO_SEED,
        "sampler_grid": ["a", 3],
        "stop": [3, "now"],
    },
    "Distilled.open": {"folder": NO_FOLDER, "student": NO_NETWORK},
    "Distilled.exported": {"file": NO_FOLDER},
}
OPEN = {"Distilled.open": Distilled.open, "Distilled.exported": Distilled.exported}


class Source:
    def batch(self, first: int, count: int) -> Any:
        raise AssertionError("nothing may be read")


def good(name: str, folder: Path) -> dict[str, Any]:
    """Arguments that are right, of each function."""
    if name == "sample":
        told = {"text": torch.zeros(1, 3, TEXT)}
        return {"student": adapter(), "conditioning": told, "shape": SHAPE, "sampler": FewStep(1)}
    if name == "fit":
        from cosmos_distill.diffusion import build_schedule
        from cosmos_distill.methods import build

        method = build(PLAIN, lambda role: adapter(), build_schedule(EDM()), seed=0)
        return {
            "method": method,
            "source": Source(),
            "trainer": Trainer(max_steps=1),
            "folder": folder,
            "seed": 0,
        }
    return {
        "distill": {
            "student": adapter(1),
            "teacher": adapter(0),
            "method": PLAIN,
            "data": samples(),
            "folder": folder,
            "trainer": Trainer(max_steps=1, global_batch=2),
        },
        "pairs": {"teacher": adapter(), "data": samples(), "count": 1, "steps": 1},
        "Distilled.open": {"folder": folder, "student": adapter()},
        "Distilled.exported": {"file": folder / "student.safetensors"},
    }[name]


def every() -> Iterator[Any]:
    for name, arguments in WRONG.items():
        for argument, values in arguments.items():
            for bad in values:
                yield pytest.param(name, argument, bad, id=f"{name} {argument}={bad!r:.20}")


def test_every_argument_of_every_function_is_tried() -> None:
    public = {name: getattr(cosmos_distill, name) for name in cosmos_distill.__all__}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)} | OPEN
    assert functions.keys() == WRONG.keys()
    for name, function in functions.items():
        assert set(inspect.signature(function).parameters) == set(WRONG[name]), name


@pytest.mark.parametrize(("name", "argument", "bad"), every())
def test_an_argument_of_another_type_is_refused(name: str, argument: str, bad: Any, tmp_path: Path) -> None:
    function, right = OPEN.get(name) or getattr(cosmos_distill, name), good(name, tmp_path / "run")
    if argument == "given_frames":
        right["conditioning"]["latents"] = torch.zeros(1, *SHAPE)
    with pytest.raises(Refusal, match=rf"\b{argument}\b"):
        function(**right | {argument: bad})
    assert not (tmp_path / "run").exists(), "nothing was begun"


@pytest.mark.parametrize("name", ["distill", "sample", "pairs"])
def test_right_arguments_are_taken(name: str, tmp_path: Path) -> None:
    import numpy as np

    arguments = good(name, tmp_path / "run") | {"seed": np.int64(3)}
    assert getattr(cosmos_distill, name)(**arguments) is not None


OF_ADAPTERS: dict[str, list[Any]] = {
    "network": ["x", None, Network],
    "schedule": ["edm", EDM, None, {}],
    "blocks": ["layers.0", 3, None],
    "width": ["16", None, 1.5, -1, True],
    "patch": [2, (1, 2), (1, 0, 2), ("a", 1, 1), None],
    "given_frames": ["clean", 1],
    "clean_condition_times": ["yes", None, 1],
    "frozen": ["unread", 3, None],
}


def test_an_adapters_argument_of_another_type_is_named() -> None:
    assert OF_ADAPTERS.keys() == inspect.signature(Foreign).parameters.keys()
    for name, values in OF_ADAPTERS.items():
        for bad in values:
            arguments = {"network": Network(), "schedule": EDM()} | {name: bad}
            with pytest.raises(ValueError, match=rf"^{name}: "):
                Foreign(**arguments)


def test_networks_without_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="teacher: its weights are on the meta device"):
        cosmos_distill.distill(
            adapter(1),
            adapter(0).to("meta"),
            PLAIN,
            samples(),
            tmp_path / "run",
            trainer=Trainer(max_steps=1),
        )
    assert not (tmp_path / "run").exists()


def test_text_of_a_width_that_a_network_does_not_take_is_refused(tmp_path: Path) -> None:
    """Which only the network itself knows."""
    wide = [{**one, "text": torch.zeros(3, TEXT + 1)} for one in samples(4)]
    said = rf"Network cannot take what it is told, latent \[.*text \[\d, 3, {TEXT + 1}\].*width of its text"
    method = DMD2(sampler=FewStep(1), gan_weight=0, condition_frames=(1.0,))
    with pytest.raises(Refusal, match=said):
        cosmos_distill.distill(
            adapter(), adapter(), method, wide, tmp_path / "run", trainer=Trainer(max_steps=1, global_batch=2)
        )
    with pytest.raises(Refusal, match=said):
        cosmos_distill.sample(adapter(), {"text": wide[0]["text"][None]}, SHAPE, sampler=2)


def test_what_else_goes_wrong_in_a_network_is_its_own() -> None:
    class Broken(Network):
        def forward(self, *given: Any) -> torch.Tensor:
            raise RuntimeError("the licence server does not answer")

    with pytest.raises(RuntimeError, match="licence server"):
        cosmos_distill.sample(Foreign(Broken(), EDM()), {"text": torch.zeros(1, 3, TEXT)}, SHAPE, sampler=2)
