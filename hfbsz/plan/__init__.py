"""Every number that follows from a recipe: batch, accumulation, rate, betas, weight decay of a step. Without torch."""
