"""The tokenizer of a run, and the encoding of texts as token ids."""
