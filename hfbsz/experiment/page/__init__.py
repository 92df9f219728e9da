"""The output of a comparison: its HTML page, its figures, the terminal table, and W&B."""
