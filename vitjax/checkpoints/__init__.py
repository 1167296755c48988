"""A checkpoint file becomes a model."""
