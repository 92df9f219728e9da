"""Weights & Biases: logging during a run, sending missing rows later, group runs, and dashboards."""
