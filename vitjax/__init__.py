"""Look inside Vision Transformers: every token's class, at every block."""

__version__ = "0.1.0.dev0"
