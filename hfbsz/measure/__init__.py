"""Measurements: metrics of evaluations, overfitting, the gradient noise scale and the critical batch."""
