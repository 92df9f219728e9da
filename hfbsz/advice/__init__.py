"""What to take: advice from what was measured on a model and its data, and from laws where nothing was."""
