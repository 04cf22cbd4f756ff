"""What tokenizers share or are made of. It lies in a folder, because each file beside it is a tokenizer."""
