"""Comparisons of batch sizes: many runs, paired tests, and their page."""
