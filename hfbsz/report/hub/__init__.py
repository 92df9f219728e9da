"""Pushes runs to the Hugging Face Hub."""
