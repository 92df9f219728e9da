"""From files to documents, tokens and memory-mapped rows; the order of rows; the batches of a step."""

IGNORED = -100  # a label that the loss does not count
