"""Statistics of finished runs: paired tests, verdicts on common beliefs, and simulations of their error rates."""
