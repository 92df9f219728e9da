"""Plans for those who keep `transformers.Trainer`."""
