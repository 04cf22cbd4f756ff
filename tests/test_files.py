"""What may be opened, and where a name may lead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cosmos_distill.config import Data, Evaluate, Generate, Guidance, Recipe
from cosmos_distill.data.errors import DataError
from cosmos_distill.errors import Refusal
from cosmos_distill.files import inside, read_json, regular, sha256
from cosmos_distill.members import not_here
from cosmos_distill.storage import replacing


def test_only_regular_files_are_opened_and_nothing_blocks(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    (tmp_path / "link.json").symlink_to(path)
    assert regular(tmp_path / "link.json") == 8 and read_json(tmp_path / "link.json") == {"a": 1}
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "device.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    for name, kind in (("pipe", "named pipe"), ("device", "device"), ("folder", "folder")):
        for read in (regular, read_json, sha256):
            with pytest.raises(ValueError, match=rf"{name}\.json is a {kind}, not a file"):
                read(tmp_path / f"{name}.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 10**5, b"\xff\xfe\x00", b"9" * 10**5], ids=range(5))
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_a_file_too_large_for_its_purpose_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").touch()
    os.truncate(tmp_path / "x.json", 2**40)
    with pytest.raises(ValueError, match=r"x\.json has 1099511627776 bytes"):
        read_json(tmp_path / "x.json")


def test_names_that_leave_their_folder() -> None:
    for name in ("a", "a/b.safetensors", "a..b", "..a/b", "a/./b"):
        assert inside(name)
    for outside in (
        "",
        ".",
        "..",
        "../a",
        "a/../../b",
        "a/..",
        "/a",
        "/",
        "a\0",
        "..\\a",
        7,
        None,
        b"a",
        ["a"],
    ):
        assert not inside(outside)


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    mine, path = tmp_path / "mine", tmp_path / "x.json"
    mine.write_text("mine")
    (tmp_path / ".x.json.tmp").symlink_to(mine)
    path.symlink_to(mine)
    with replacing(path) as temporary:
        temporary.write_text("ours")
    assert mine.read_text() == "mine" and path.read_text() == "ours" and not path.is_symlink()


def recipe(*names: str, students: tuple[str, ...] = ()) -> Recipe:
    stages = {name: Generate(pairs=2, guidance=Guidance(1.0)) for name in names}
    scores = Evaluate(clips=4, guidance=Guidance(1.0), students=dict.fromkeys(students, "generate"))
    return Recipe(network="transfer1-smoke", data=Data(), stages=stages | {"evaluate": scores})


NOT_NAMES = [
    "", ".", "..", "../x", "x/../../y", "/tmp/x", "a/b", "a\\b", "a\0b", "a\nb", " ", "a b", "-x", ".hidden",
    "recipe.json", "run.lock", "report.html", "report.json", "kd.", "C:", "a:b", "~", "x" * 65, "*", "$HOME",
]  # fmt: skip


@pytest.mark.parametrize("name", NOT_NAMES, ids=repr)
def test_a_stage_and_a_column_are_named_after_what_can_be_a_file(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a stage") as error:
        recipe(name)
    assert repr(name) in str(error.value)
    with pytest.raises(ValueError, match="cannot be the name of a column of the report"):
        recipe("generate", students=(name,))


def test_names_that_meet_on_another_file_system_are_refused() -> None:
    for one, other in (
        ("kd", "KD"),
        ("kd", "Kd"),
        ("straße", "STRASSE"),
        ("é", "e\N{COMBINING ACUTE ACCENT}"),
    ):
        with pytest.raises(ValueError, match=r"cannot both|cannot be"):
            recipe(one, other)
    for name in ("kd", "dmd2", "dmd2_long-run", "stage_2", "évaluer", "2nd"):
        assert name in recipe(name).stages


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://example.com/student.safetensors", "addresses are not followed"),
        ("s3://bucket/clips", "addresses are not followed"),
        ("hf:/owner/name", "addresses are not followed"),
        ("nvidia/Cosmos-Transfer1-7B", "a model's name on a hub, download it"),
        ("tests/nowhere.pt", ""),  # the folder is there
        ("C:/clips", ""),
        ("/mnt/clips/12:30", ""),
        ("clips", ""),
    ],
)
def test_an_address_and_a_name_on_a_hub_are_told_from_paths(name: str, said: str) -> None:
    found = not_here(Path(name))
    assert said in found and bool(said) == bool(found)


def test_those_who_name_them_are_told(tmp_path: Path) -> None:
    from cosmos_distill.data.opening import open_regular
    from cosmos_distill.run.checks import check
    from cosmos_distill.sampling.exported import read

    for tried in (open_regular, read):
        with pytest.raises((Refusal, DataError), match="addresses are not followed: download it"):
            tried(Path("https://example.com/x.safetensors"))
    stages = {"generate": Generate(pairs=2, guidance=Guidance(1.0))}
    asked = Recipe(
        network="transfer1-smoke", teacher=Path("nvidia/Cosmos-7B"), stages=stages,
        data=Data(source="folder", root=Path("clips")),
    )  # fmt: skip
    with pytest.raises(Refusal) as refused:
        check(asked, tmp_path / "run")
    assert "is a model's name on a hub, download it" in str(refused.value)
