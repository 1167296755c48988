"""Saliency: maps of patches and token removal curves, one per image."""
