"""From records to people: console, page, model card, Weights & Biases."""
