"""Images of noise in a folder per class, and a model of the same classes."""

import numpy as np
from PIL import Image

import vitjax

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
TINY = vitjax.Config(32, 8, dim=16, depth=2, heads=2, mlp_dim=32)
BATCH = 8


def make_photos(folder):
    """29 images of six classes: at batch size 8, the last batch holds five."""
    rng = np.random.default_rng(0)
    for number in range(29):
        place = folder / CLASSES[number % 6]
        place.mkdir(exist_ok=True)
        pixels = rng.integers(256, size=(40, 36, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02d}.png")
    return folder
