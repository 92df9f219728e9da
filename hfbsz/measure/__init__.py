"""Measurements: metrics of evaluations, and the detection of overfitting."""
