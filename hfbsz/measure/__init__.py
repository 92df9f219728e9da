"""Measures: from Steps, evaluations and models to Readings."""
