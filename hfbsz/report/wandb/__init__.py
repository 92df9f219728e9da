"""Weights & Biases: what a run sends, what is sent later, and what a team looks at."""
