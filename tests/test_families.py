"""Families are found by being there, and sizes are described so that they can be read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import nn

from cosmos_distill import cli, families
from cosmos_distill.config import Data, Export, Recipe
from cosmos_distill.families import Family, NetworkConfig, described, preset, preset_of, read, title
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.models.transfer1.config import PRESETS, Transfer1Config

ROOT = Path(__file__).parents[1]
TRANSFER1 = str(ROOT / "recipes" / "transfer1_kd_dmd2.py")
OWN = Transfer1Config(width=24, blocks=1, control_blocks=1, heads=1, head_dim=24, hint_widths=(8,))


def test_every_folder_of_models_is_a_family() -> None:
    folders = {p.parent.name for p in (ROOT / "python/cosmos_distill/models").glob("*/config.py")} - {
        "common"
    }
    made = {
        type(next(iter(f.presets.values()))).__module__.split(".")[-2] for f in families.families().values()
    }
    assert made == folders


@pytest.mark.parametrize("name", families.presets())
def test_presets_are_of_their_family_and_are_read_again(name: str) -> None:
    sizes = preset(name)
    assert type(sizes) is sizes.family.config
    assert preset_of(sizes) == title(sizes) == name
    assert read(described(sizes)) == sizes == read(name)
    assert Recipe(network=name, data=Data(), stages={"e": Export(student_from="x")}).network == sizes  # type: ignore[arg-type]


@pytest.mark.parametrize("family", families.families().values(), ids=lambda f: f.name)
def test_a_family_that_denoises_says_all_that_is_asked(family: Family) -> None:
    if not issubclass(family.config, DiTConfig):
        return
    assert family.names and family.give_frames and family.schedule and family.teacher and family.text
    assert family.tokenizers and family.wall_seconds.keys() <= family.presets.keys()


def test_sizes_of_ones_own_are_no_preset_and_are_read_again() -> None:
    assert preset_of(OWN) is None and title(OWN) == "transfer1 of your own sizes"
    assert read(described(OWN)) == OWN and hash(read(described(OWN))) == hash(OWN)


FORGED: dict[str, Any] = {
    "no family": {"width": 24},
    "another family": described(OWN) | {"family": "../../etc"},
    "an unknown size": described(OWN) | {"colour": 3},
    "a size out of range": described(OWN) | {"blocks": 0},
    "words for a size": described(OWN) | {"width": "24"},
    "sizes that do not fit": described(OWN) | {"heads": 5},
    "a list": [1],
    "nothing": None,
}


@pytest.mark.parametrize("said", FORGED.values(), ids=FORGED)
def test_what_is_no_network_is_refused(said: Any) -> None:
    with pytest.raises(ValueError):
        read(said)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foreign(NetworkConfig):
    family_name: ClassVar[str] = "foreign"

    width: int = 3


class Other(Foreign):
    family_name: ClassVar[str] = "other"


@pytest.fixture
def known() -> Iterator[None]:
    yield
    families._registered.clear()


def test_a_family_from_outside_is_registered(known: None) -> None:
    presets = {"foreign-a": Foreign()}
    mine = Family(title="Mine", config=Foreign, presets=presets, network=lambda *_: nn.Module())
    with pytest.raises(ValueError, match="no family of networks"):
        _ = Foreign().family
    assert families.register(mine) is mine
    assert Foreign().family is mine and preset("foreign-a") == Foreign()
    with pytest.raises(ValueError, match="a family 'foreign' already"):
        families.register(dataclasses.replace(mine, title="Another"))
    with pytest.raises(ValueError, match="a preset 'transfer1-7b' already"):
        families.register(dataclasses.replace(mine, config=Other, presets={"transfer1-7b": Other()}))


def network(*args: str) -> NetworkConfig:
    return cli.parse([TRANSFER1, *args]).recipe.network


def test_sizes_are_options_of_the_command() -> None:
    assert network() == PRESETS["transfer1-mini"]
    changed = network("--network.width", "96", "--network.heads", "3", "--network.blocks", "2")
    assert changed == dataclasses.replace(PRESETS["transfer1-mini"], width=96, heads=3, blocks=2)
    widths = network("--network.hint-widths", "8", "16")
    assert widths == dataclasses.replace(PRESETS["transfer1-mini"], hint_widths=(8, 16))


@pytest.mark.parametrize("first", [("--network", "transfer1-smoke"), ("--network=transfer1-smoke",)])
def test_a_preset_is_an_option_and_its_sizes_are_changed_on_top(first: tuple[str, ...]) -> None:
    smoke = PRESETS["transfer1-smoke"]
    assert network(*first) == smoke
    assert network("--network.blocks", "3", *first) == dataclasses.replace(smoke, blocks=3)
    assert network("--network", "predict2.5-smoke").family_name == "predict2.5"


@pytest.mark.parametrize(
    "args, said",
    [
        (("--network.width", "97"), "--network.heads 6 x head_dim 32 is not width 97"),
        (("--network.blocks", "0"), "--network.blocks must be an integer from 1"),
        (
            ("--network.blocks", "3"),
            "the weights of transfer1 of your own sizes are not part of this package",
        ),
        (("--network",), "'' is not a preset"),
        (("--network", "transfer9"), "--network 'transfer9' is not a preset: choose one of"),
        (("--network", "predict2.5-mini", "--control", "edge"), "denoises in TrigFlow"),
    ],
)
def test_impossible_sizes_are_refused_by_name(
    args: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([TRANSFER1, *args, "--out", str(tmp_path / "run")]) == cli.REFUSED
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_network_that_generates_nothing_is_not_offered() -> None:
    with pytest.raises(ValueError, match="is not a preset: choose one of") as refused:
        families.preset("foo")
    assert "transfer1-7b" in str(refused.value) and "mini-cv4x4x4" not in str(refused.value)
    assert families.preset("mini-cv4x4x4"), "though it is one"


def test_help_names_the_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse([TRANSFER1, "--help"])
    shown = capsys.readouterr().out
    assert "--network.adaln-rank" in shown and "--network NAME" in shown
