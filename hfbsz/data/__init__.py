"""From files to documents, tokens and memory-mapped rows; the order of rows; the batches of a step."""
