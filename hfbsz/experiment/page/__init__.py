"""What a comparison shows: its page, its pictures, the terminal, W&B."""
