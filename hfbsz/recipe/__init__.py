"""What is wanted: the fields of a recipe, how they are written, and how a recipe is put together. Without torch."""
