"""Each file is a tokenizer of its own, and what is known of it holds for what it builds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_distill import tokenizers
from cosmos_distill.config import Data
from tests.real_formats.tokenizers import cosmos

FOLDER = Path(tokenizers.__file__).parent
SHIPPED = [name for name in tokenizers.names() if tokenizers.find(name).folder is None]


def test_every_file_is_one() -> None:
    assert tokenizers.names() == ("cosmos-cv8x8x8", "haar", "mini-cv4x4x4", "pixels", "wan2.1")
    assert len(tokenizers.names()) == len(list(FOLDER.glob("*.py"))) - 1


def test_facts_are_known_without_torch() -> None:
    code = (
        "import sys; from cosmos_distill import tokenizers\n"
        "print([tokenizers.find(n).channels for n in tokenizers.names()], 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[16, 16, 16, 3, 16] False", run.stderr


@pytest.mark.parametrize("name", [*SHIPPED, "cosmos-cv8x8x8"])
def test_facts_hold_for_what_is_built(name: str, tmp_path: Path) -> None:
    kind = tokenizers.find(name)
    path = None if name in SHIPPED else cosmos(tmp_path)
    built = tokenizers.build(Data(tokenizer=name, tokenizer_path=path))
    frames = 1 + 2 * kind.time
    assert kind.misfit(frames) is None
    shape = built.latent_shape(frames, 4 * kind.space, 8 * kind.space)
    assert shape == (kind.channels, kind.latent_frames(frames), 4, 8)
    assert kind.frames(shape[1]) == frames


def test_one_with_weights_asks_for_them() -> None:
    for name in set(tokenizers.names()) - set(SHIPPED):
        data, folder = Data(tokenizer=name), tokenizers.find(name).folder
        assert tokenizers.fingerprint(data) == {}
        with pytest.raises(ValueError, match=r"set data\.tokenizer_path to ") as caught:
            tokenizers.build(data)
        assert folder is not None and folder in str(caught.value)
    with pytest.raises(ValueError, match=r"called 'wan2-1': did you mean wan2\.1\? there are"):
        tokenizers.find("wan2-1")


def test_weights_of_the_package_can_be_replaced(tmp_path: Path) -> None:
    shipped = tokenizers.find("mini-cv4x4x4").shipped
    assert shipped is not None
    own = tokenizers.fingerprint(Data(tokenizer="mini-cv4x4x4"))
    copy = tmp_path / "other.safetensors"
    copy.write_bytes(shipped.read_bytes())
    named = tokenizers.fingerprint(Data(tokenizer="mini-cv4x4x4", tokenizer_path=copy))
    assert named == {"other.safetensors": own["mini-cv4x4x4.safetensors"]}
