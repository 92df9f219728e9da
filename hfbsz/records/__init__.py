"""What a run writes, and what is read back from its folder. Without torch."""
