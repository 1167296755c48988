"""The Vision Transformer in Flax Linen, and passes forward and backward through it."""
