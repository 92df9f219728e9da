"""Measures: from Steps, evaluations and finished runs to numbers and findings."""
