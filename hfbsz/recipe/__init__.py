"""Recipes: their fields, their syntax, and how files and words are merged into one. Nothing here imports torch."""
