"""The tokenizer of a run, and texts as token ids."""
