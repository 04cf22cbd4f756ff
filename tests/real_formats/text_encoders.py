"""Tiny random text encoders on disk, as the published ones lie there: configuration, weights, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "a red car drives through the rain at night",
    "the camera follows two people on a snowy street",
    "You are a helpful assistant who will provide prompts to an image generator.",
    "system user assistant",
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""In the form of Qwen's: any role between its marks."""


def t5(folder: Path, kind: str = "t5", seed: int = 0, width: int = 32) -> Any:
    """A T5 encoder (or UMT5) of two layers with a tokenizer of word pieces; returns transformers' model."""
    import transformers

    network, configured = {
        "t5": (transformers.T5EncoderModel, transformers.T5Config),
        "umt5": (transformers.UMT5EncoderModel, transformers.UMT5Config),
    }[kind]
    words = Tokenizer(models.Unigram())
    words.normalizer = normalizers.NFKC()
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    words.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    )
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    said = configured(
        vocab_size=words.get_vocab_size() + 5, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu" if kind == "umt5" else "relu",
    )  # fmt: skip
    model = network(said).eval()
    model.save_pretrained(folder)
    return model


def reason1(folder: Path, seed: int = 0, layers: int = 3) -> Any:
    """A Qwen2.5-VL, eyes included, whose embedding is ``layers`` times 32 wide, with a byte-level tokenizer
    and a chat template."""
    import transformers

    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    names = "endoftext", "im_start", "im_end", "image_pad", "video_pad", "vision_start", "vision_end"
    special = [f"<|{name}|>" for name in names]
    bytes_.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_, pad_token="<|endoftext|>", eos_token="<|im_end|>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    marks = {f"{name}_token_id": bytes_.token_to_id(f"<|{mark}|>") for name, mark in
             {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start",
              "vision_end": "vision_end"}.items()}  # fmt: skip
    said = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": bytes_.get_vocab_size(), "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        **marks,
    )  # fmt: skip
    model = transformers.Qwen2_5_VLForConditionalGeneration(said).eval()
    model.save_pretrained(folder)
    return model


def in_shards(folder: Path, count: int = 3) -> None:
    """Replace the one weights file by ``count`` and their index."""
    from safetensors.torch import load_file, save_file

    whole = folder / "model.safetensors"
    state = load_file(whole)
    places = {}
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = dict(list(state.items())[number::count])
        save_file(part, folder / name, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    whole.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def as_pickle(folder: Path) -> None:
    """Replace the weights by the torch file in which T5-11B is published."""
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
