"""A checkpoint file becomes a function from images to logits and a trace."""
