"""Text encoders from folders as published: as in transformers and diffusers, and nothing in them is run."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
import torch

from cosmos_distill import text
from tests.real_formats import text_encoders as tiny

pytestmark = pytest.mark.needs("transformers")
PROMPTS = ["a red car drives at night", "rain", ""]
TOKENS = 24


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    return folder, tiny.t5(folder)


@pytest.fixture(scope="module")
def reason1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reason1")
    return folder, tiny.reason1(folder)


def copied(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_t5_is_transformers_own_with_zeros_behind_the_prompt(kind, tmp_path):
    from transformers import AutoTokenizer

    theirs = tiny.t5(tmp_path, kind)
    encoder = text.build(tmp_path, tokens=TOKENS)
    found = encoder(PROMPTS)
    assert found.shape == (3, TOKENS, encoder.channels) and text.kind_of(tmp_path) == kind
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for prompt, mine, count in zip(PROMPTS, found, encoder.lengths(PROMPTS), strict=True):
        alone = theirs(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0]
        assert len(alone) == count
        torch.testing.assert_close(mine[:count], alone, rtol=1e-5, atol=1e-6)
        assert not mine[count:].any()


@pytest.mark.needs("diffusers")
def test_t5_is_what_diffusers_pipeline_makes_of_it(t5):
    from diffusers.pipelines.cosmos.pipeline_cosmos_text2world import CosmosTextToWorldPipeline
    from transformers import AutoTokenizer

    folder, theirs = t5
    pipeline = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(folder), text_encoder=theirs)
    wanted = CosmosTextToWorldPipeline._get_t5_prompt_embeds(pipeline, PROMPTS, TOKENS, "cpu", torch.float32)
    torch.testing.assert_close(text.build(folder, tokens=TOKENS)(PROMPTS), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.needs("diffusers")
@pytest.mark.parametrize("tokens", [TOKENS, 160])  # less and more than the template has
def test_reason1_is_what_diffusers_pipeline_makes_of_it(reason1, tokens):
    from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import Cosmos2_5_PredictBasePipeline
    from transformers import AutoTokenizer

    folder, theirs = reason1
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    pipeline = SimpleNamespace(tokenizer=tokenizer, text_encoder=theirs)
    make = Cosmos2_5_PredictBasePipeline._get_prompt_embeds
    wanted = make(pipeline, PROMPTS, tokens, "cpu", torch.float32)
    encoder = text.build(folder, tokens=tokens)
    found = encoder(PROMPTS)
    assert found.shape == (3, tokens, 3 * 32) and encoder.channels == 96
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_each_layer_is_normalised_over_its_channels(reason1):
    found = text.build(reason1[0], tokens=40)(["rain"]).unflatten(-1, (3, 32))
    torch.testing.assert_close(found.mean(-1), torch.zeros(1, 40, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std(-1), torch.ones(1, 40, 3), rtol=0, atol=1e-4)


def test_a_prompt_is_encoded_alike_alone_and_among_others(t5, reason1):
    for folder, _ in (t5, reason1):
        encoder = text.build(folder, tokens=TOKENS)
        torch.testing.assert_close(encoder(PROMPTS)[1:2], encoder(PROMPTS[1:2]), rtol=1e-4, atol=1e-5)


def test_lengths_count_what_is_cut(t5, reason1):
    for folder, _ in (t5, reason1):
        encoder = text.build(folder, tokens=TOKENS)
        short, long = encoder.lengths(["rain", "rain at night " * 30])
        assert short < long > TOKENS
        assert encoder(["rain at night " * 30]).shape[1] == TOKENS


@pytest.mark.parametrize("layout", ["shards", "pickle", "old names", "diffusers", "pipeline", "hub"])
def test_every_layout_in_which_it_is_found_is_read_alike(layout, t5, reason1, tmp_path):
    folder, _ = reason1 if layout == "old names" else t5
    wanted = text.build(folder, tokens=TOKENS)(PROMPTS)
    if layout == "hub":
        found = tmp_path / "models--google-t5--t5-11b"
        (found / "refs").mkdir(parents=True)
        (found / "refs" / "main").write_text("abc")
        for name in ("abc", "older"):
            (found / "snapshots" / name).mkdir(parents=True)
        copied(folder, found / "snapshots" / "abc")
    elif layout in ("diffusers", "pipeline"):
        (tmp_path / "text_encoder").mkdir()
        (tmp_path / "tokenizer").mkdir()
        for path in folder.iterdir():
            encoder = path.name in ("config.json", "model.safetensors")
            place = tmp_path / ("text_encoder" if encoder else "tokenizer") / path.name
            place.write_bytes(path.read_bytes())
        found = tmp_path / "text_encoder" if layout == "diffusers" else tmp_path
    else:
        found = copied(folder, tmp_path)
    if layout == "shards":
        tiny.in_shards(found)
    elif layout == "pickle":
        tiny.as_pickle(found)
    elif layout == "old names":
        rename(found / "model.safetensors", {"model.visual.": "visual.", "model.language_model.": "model."})
    torch.testing.assert_close(text.build(found, tokens=TOKENS)(PROMPTS), wanted, rtol=0, atol=0)
    assert text.fingerprint(found)["tokenizer.json"] == text.fingerprint(folder)["tokenizer.json"]


def rename(path, names):
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    for old, new in names.items():
        state = {new + name[len(old) :] if name.startswith(old) else name: v for name, v in state.items()}
    save_file(state, path, {"format": "pt"})


def test_bf16_is_near(t5, reason1):
    for folder, _ in (t5, reason1):
        exact = text.build(folder, tokens=TOKENS)(PROMPTS)
        rough = text.build(folder, dtype=torch.bfloat16, tokens=TOKENS)(PROMPTS)
        assert rough.dtype == torch.bfloat16
        assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def change_json(path, **changes):
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | changes))


def test_no_code_of_a_folder_runs(t5, tmp_path):
    folder = copied(t5[0], tmp_path)
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).write_text('')\nclass Evil: ...\n"
    )
    for name in ("config.json", "tokenizer_config.json"):
        change_json(
            folder / name, auto_map={"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        )
    text.build(folder, tokens=TOKENS)(PROMPTS)
    assert not ran.exists()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_a_program_is_refused(t5, tmp_path):
    folder = copied(t5[0], tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"shared.weight": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        text.build(folder, tokens=TOKENS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "has no config.json"),
        (
            lambda f: change_json(f / "config.json", model_type="bert"),
            ValueError,
            "'bert' is no text encoder",
        ),
        (lambda f: (f / "config.json").write_text("[]"), ValueError, "None is no text encoder"),
        (lambda f: change_json(f / "config.json", d_model=64), ValueError, "do not fit"),
        (lambda f: change_json(f / "config.json", num_layers=3), ValueError, "is missing"),
        (lambda f: change_json(f / "config.json", num_heads="x"), ValueError, "config.json"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "has no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12345678901"), ValueError, "model.safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), FileNotFoundError, "has no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), ValueError, "its tokenizer cannot be read"),
    ],
)
def test_what_is_no_encoder_is_refused_by_name(spoil, error, said, t5, tmp_path):
    folder = copied(t5[0], tmp_path)
    spoil(folder)
    with pytest.raises(error, match=said):
        text.build(folder, tokens=TOKENS)


def test_an_index_does_not_lead_out_of_the_folder(t5, tmp_path):
    folder = copied(t5[0], tmp_path)
    tiny.in_shards(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(ValueError, match="damaged"):
        text.build(folder, tokens=TOKENS)
    index.write_text(index.read_text().replace("../model-00001", "other-00001"))
    with pytest.raises(FileNotFoundError, match="lacks other-00001"):
        text.build(folder, tokens=TOKENS)


def test_a_tokenizer_without_a_chat_template_is_refused(reason1, tmp_path):
    folder = copied(reason1[0], tmp_path)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="no chat template"):
        text.build(folder, tokens=TOKENS)
