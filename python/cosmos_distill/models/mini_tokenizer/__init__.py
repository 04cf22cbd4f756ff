"""A small video tokenizer: a network that is trained on pixels and denoises nothing."""
