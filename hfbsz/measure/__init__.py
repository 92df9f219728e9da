"""What is measured on runs, and what of it can be believed."""
