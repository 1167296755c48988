"""A model and a batch become a map or a curve per image."""
