"""The encoder is one of the kinds, a folder says that it is one, and embeddings are transformers' own."""

from pathlib import Path

import torch
from transformers import MT5Config, MT5EncoderModel, PreTrainedTokenizerFast

from cosmos_distill import text
from tokenizers import Tokenizer, models, pre_tokenizers

folder = Path("mt5")
words = {"<pad>": 0, "<unk>": 1, "red": 2, "car": 3}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
fast.save_pretrained(folder)
torch.manual_seed(0)
theirs = MT5EncoderModel(MT5Config(vocab_size=4, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
theirs.eval().save_pretrained(folder)

assert text.kind_of(folder) == "mt5" and text.channels(folder) == 16
encoder = text.build(folder, tokens=6)
with torch.no_grad():
    found = encoder(["red car"])
    wanted = theirs(torch.tensor([[2, 3]])).last_hidden_state
assert found.shape == (1, 6, 16) and encoder.lengths(["red car"]) == [2]
torch.testing.assert_close(found[:, :2], wanted)
assert not found[:, 2:].any()
