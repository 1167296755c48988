"""Images of noise in a folder per class, and a model of the same classes."""

import numpy as np
from PIL import Image

import vitjax
from vitjax.data.images import ImageError
from vitjax.data.records import Record

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


class Noise:
    """A data set of noise with these labels; an image labeled "broken" is.

    Remembers what was read; `label_names`, which it lacks, may be added.
    """

    def __init__(self, labels, seed=0):
        self.labels, self.seed, self.read = labels, seed, []
        self.id = f"noise/{seed}"

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.read.append(index)
        name, label = f"image {index}", self.labels[index]
        if label == "broken":
            raise ImageError(name, "it is broken")
        draw = np.random.default_rng([self.seed, index])
        pixels = draw.integers(256, size=(40, 36, 3)).astype(np.uint8)
        return Record(image=pixels, label=label, name=name)
